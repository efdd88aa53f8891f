"""One question about one or several pictures, from the command line or from Python.

python -m llava.eval.run_llava --model-path DIR --image-file a.jpg,b.jpg --query "What is this?"
"""

import argparse
from types import SimpleNamespace

from PIL import Image

from llava.constants import IMAGE_PLACEHOLDER
from llava.inference import Chat, Decoding, image_prefix, stop_string
from llava.remote import load_image


def answer(chat: Chat, query: str, images: list[Image.Image], decoding: Decoding) -> str:
    """`<image-placeholder>` in the query marks where pictures go; without one they come first."""
    if IMAGE_PLACEHOLDER in query:
        message = query.replace(IMAGE_PLACEHOLDER, image_prefix(chat, 1).rstrip("\n"))
    else:
        message = image_prefix(chat, len(images)) + query
    conversation = chat.conversation()
    conversation.append_message(conversation.roles[0], message)
    conversation.append_message(conversation.roles[1], None)
    return chat.answer_all([conversation.get_prompt()], [images], decoding, stop_string(conversation))[0]


def eval_model(args: argparse.Namespace | SimpleNamespace) -> str:
    """Loads, answers, prints and returns the answer.

    args: model_path, model_base, model_name (unused: the checkpoint's config decides), query, conv_mode, image_file,
    sep, temperature, top_p, num_beams, max_new_tokens.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "float16" if device == "cuda" else "float32"
    chat = Chat.load(args.model_path, args.model_base, args.conv_mode, device=device, torch_dtype=dtype)
    images = [load_image(location) for location in args.image_file.split(args.sep)]
    decoding = Decoding(args.temperature, args.top_p, args.num_beams, args.max_new_tokens)
    text = answer(chat, args.query, images, decoding)
    print(text)
    return text


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--model-base", default=None)
    parser.add_argument("--model-name", default=None, help="accepted for old scripts; the config decides")
    parser.add_argument("--image-file", required=True, help="paths or addresses, joined by --sep")
    parser.add_argument("--query", required=True)
    parser.add_argument("--conv-mode", default=None)
    parser.add_argument("--sep", default=",")
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--top_p", type=float, default=None)
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--max_new_tokens", type=int, default=512)
    eval_model(parser.parse_args(argv))


if __name__ == "__main__":
    main()
