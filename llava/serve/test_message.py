"""Asks a served model one question and prints the answer as it comes.

python -m llava.serve.test_message --model-name llava-v1.5-7b --message "Tell me a story."
"""

import argparse

from llava.conversation import default_conversation
from llava.errors import readable_errors
from llava.inference import stop_string
from llava.serve.client import ControllerClient, ServiceError, generate

QUESTION = "Tell me a story with more than 1000 words."


def ask(arguments: argparse.Namespace) -> None:
    worker = arguments.worker_address or ControllerClient(arguments.controller_address).worker_address(
        arguments.model_name
    )
    if worker is None:
        raise ServiceError(f"no worker serves {arguments.model_name!r}")
    conversation = default_conversation.copy()
    conversation.append_message(conversation.roles[0], arguments.message)
    conversation.append_message(conversation.roles[1], None)
    prompt = conversation.get_prompt()
    message = {
        "model": arguments.model_name,
        "prompt": prompt,
        "max_new_tokens": arguments.max_new_tokens,
        "temperature": 0.7,
        "stop": stop_string(conversation),
    }
    shown = 0
    print(arguments.message)
    for text in generate(worker, message):
        print(text[len(prompt) + shown :], end="", flush=True)
        shown = len(text) - len(prompt)
    print()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--controller-address", default="http://localhost:21001")
    parser.add_argument("--worker-address", default=None, help="ask this worker, not the controller")
    parser.add_argument("--model-name", default="facebook/opt-350m")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--message", default=QUESTION)
    ask(parser.parse_args(argv))


if __name__ == "__main__":
    with readable_errors():
        main()
