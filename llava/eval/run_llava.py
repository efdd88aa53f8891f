"""One question about one or several pictures, from the command line or from Python.

python -m llava.eval.run_llava --model-path DIR --image-file a.jpg,b.jpg --query "What is this?"
"""

import argparse
from dataclasses import dataclass, fields
from typing import Any

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_PLACEHOLDER
from llava.errors import readable_errors
from llava.eval.answering import prompt_of, tell_overlong
from llava.inference import Chat, Decoding, choose_template, place, stop_string
from llava.remote import load_image


@dataclass(frozen=True)
class Query:
    """What `eval_model` reads from its argument; what an argument lacks has the value given here."""

    model_path: str
    image_file: str
    query: str
    model_base: str | None = None
    model_name: str | None = None
    conv_mode: str | None = None
    sep: str = ","
    temperature: float = 0.2
    top_p: float | None = None
    num_beams: int = 1
    max_new_tokens: int = 512
    device: str = "auto"

    @classmethod
    def of(cls, args: Any) -> "Query":
        """From any object with attributes. Raises ValueError for one without model_path, image_file or query."""
        given = {field.name: getattr(args, field.name) for field in fields(cls) if hasattr(args, field.name)}
        missing = [name for name in ("model_path", "image_file", "query") if name not in given]
        if missing:
            raise ValueError(f"eval_model needs {', '.join(missing)}; it was given {', '.join(sorted(given))}")
        return cls(**given)


def answer(chat: Chat, query: str, images: list[Image.Image], decoding: Decoding) -> str:
    """`<image-placeholder>` in the query marks where pictures go; without one they come first."""
    message = query.replace(IMAGE_PLACEHOLDER, DEFAULT_IMAGE_TOKEN)
    prompt = prompt_of(chat, message, len(images))
    return chat.answer_all([prompt], [images], decoding, stop_string(chat.conversation()))[0]


def eval_model(args: Any) -> str:
    """Loads, answers, prints and returns the answer. args: any object with the attributes of `Query`.

    Only model_path, image_file (paths or addresses, joined by `sep`) and query are required. Without conv_mode the
    checkpoint decides on the template.
    """
    query = Query.of(args)
    images = [load_image(location) for location in query.image_file.split(query.sep)]
    decoding = Decoding(query.temperature, query.top_p, query.num_beams, query.max_new_tokens)
    chat = Chat.load(query.model_path, query.model_base, query.conv_mode, query.model_name, **place(query.device))
    suited = choose_template(chat.name, chat.model.config)
    if query.conv_mode and query.conv_mode != suited:
        print(f"[WARNING] {chat.name} suggests the template {suited}; --conv-mode {query.conv_mode} is used")
    text = answer(chat, query.query, images, decoding)
    tell_overlong(chat)
    print(text)
    return text


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--model-base", default=None)
    parser.add_argument("--model-name", default=None, help="what the checkpoint is called, if not by its folder")
    parser.add_argument("--image-file", required=True, help="paths or addresses, joined by --sep")
    parser.add_argument("--query", required=True)
    parser.add_argument("--conv-mode", default=None)
    parser.add_argument("--sep", default=",")
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--top_p", type=float, default=None)
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--max_new_tokens", type=int, default=512)
    parser.add_argument("--device", default="auto", help="auto takes a GPU when there is one")
    eval_model(parser.parse_args(argv))


if __name__ == "__main__":
    with readable_errors():
        main()
