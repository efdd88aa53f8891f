"""A chat in the terminal.

    python -m llava.serve.cli --model-path DIR --image-file a.jpg https://example.org/b.jpg

Pictures belong to the next question; `/image PATH` adds one, `/new` forgets the conversation, `/help` lists commands.
Ctrl-C ends an answer; an empty line or the end of input ends the program.
"""

import argparse
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from PIL import Image

from llava.conversation import conv_templates
from llava.errors import readable_errors
from llava.inference import Chat, Decoding, Turn, choose_template, place
from llava.remote import SERVING_LIMITS, load_image

HELP = """\
/image PATH   add a picture, by path or http(s) address, to the next question
/new          forget the conversation and its pictures
/help         this list
Ctrl-C ends an answer; an empty line or Ctrl-D ends the program."""


class Terminal:
    """One conversation. read: asks for a line with a prompt; write: where answers go."""

    def __init__(
        self, chat: Chat, decoding: Decoding, read: Callable[[str], str], write: TextIO, is_debug: bool = False
    ) -> None:
        self.chat = chat
        self.decoding = decoding
        self.read = read
        self.write = write
        self.is_debug = is_debug
        self.turns: list[Turn] = []
        self.pictures: list[Image.Image] = []

    def run(self) -> None:
        words = [re.findall(r"\w+", role) or ["you"] for role in self.chat.conversation().roles]
        user, assistant = (found[-1] for found in words)
        while True:
            try:
                line = self.read(f"{user}: ").strip()
            except EOFError:
                line = ""
            except KeyboardInterrupt:
                self._say("\n(an empty line ends the program)")
                continue
            if not line:
                self._say("exit...")
                return
            if line.startswith("/"):
                self._obey(line)
            else:
                self._answer(line, assistant)

    def add_picture(self, location: str) -> None:
        """Raises ValueError or FileNotFoundError."""
        if not self.chat.sees:
            raise ValueError(f"{self.chat.name} is a language model without a vision tower: it takes no pictures")
        self.pictures.append(load_image(location, SERVING_LIMITS))

    def _obey(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/image" and rest.strip():
            try:
                self.add_picture(rest.strip().strip("'\""))
            except (ValueError, OSError) as error:
                self._say(f"error: {error}")
            else:
                self._say(f"({len(self.pictures)} picture(s) for the next question)")
        elif command == "/new":
            self.turns.clear()
            self.pictures.clear()
            self._say("(a new conversation)")
        else:
            self._say(HELP)

    def _answer(self, question: str, name: str) -> None:
        """Writes the answer as it comes and remembers it. A question that fails is not remembered, nor its pictures
        spent."""
        turn = Turn(question, tuple(self.pictures))
        prompt = self.chat.prompt([*self.turns, turn])
        cancel = threading.Event()
        self.write.write(f"{name}: ")
        try:
            stream = self.chat.stream(prompt.text, prompt.images, self.decoding, prompt.stop, cancel)
            text = _follow(stream, cancel, self._show)
        except Exception as error:
            self._say(f"\nerror: {error}")
            return
        self._say("")
        self.turns.append(replace(turn, answer=text))
        self.pictures.clear()
        if self.is_debug:
            self._say(repr({"prompt": prompt.text, "outputs": text}))

    def _show(self, piece: str) -> None:
        self.write.write(piece)
        self.write.flush()

    def _say(self, line: str) -> None:
        self._show(line + "\n")


def _follow(stream: Iterator[str], cancel: threading.Event, show: Callable[[str], None]) -> str:
    """Shows each new piece of the growing text and returns the last; Ctrl-C ends the stream where it is."""
    shown = ""
    while True:
        try:
            text = next(stream, None)
        except KeyboardInterrupt:
            cancel.set()
            show(" (stopped)")
            return shown
        if text is None:
            return shown
        show(text[len(shown) :])
        shown = text


def pick_template(arguments: argparse.Namespace, chat: Chat) -> str:
    """--conv-mode, with a warning where the checkpoint would have chosen otherwise."""
    own = choose_template(chat.name, chat.model.config)
    if arguments.conv_mode is not None and arguments.conv_mode != own:
        print(
            f"[WARNING] the checkpoint's own conversation template is {own}; --conv-mode {arguments.conv_mode} is used"
        )
    return arguments.conv_mode or own


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="facebook/opt-350m")
    parser.add_argument("--model-base", default=None)
    parser.add_argument("--image-file", nargs="+", default=[], metavar="PATH", help="paths or http(s) addresses")
    parser.add_argument("--device", default="cuda", help="cuda takes the CPU where there is no GPU")
    parser.add_argument("--conv-mode", default=None, choices=sorted(conv_templates), metavar="TEMPLATE")
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--top-p", type=float, default=None)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--load-8bit", action="store_true")
    parser.add_argument("--load-4bit", action="store_true")
    parser.add_argument("--debug", action="store_true", help="print prompt and answer after each turn")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    decoding = Decoding(arguments.temperature, arguments.top_p, max_new_tokens=arguments.max_new_tokens)
    for location in arguments.image_file:  # a wrong path is told before the model is loaded
        if "://" not in location and not Path(location).expanduser().exists():
            raise FileNotFoundError(f"there is no picture at {location}")
    chat = Chat.load(
        arguments.model_path,
        arguments.model_base,
        load_8bit=arguments.load_8bit,
        load_4bit=arguments.load_4bit,
        **place(arguments.device),
    )
    chat.template = pick_template(arguments, chat)
    terminal = Terminal(chat, decoding, input, sys.stdout, arguments.debug)
    for location in arguments.image_file:
        terminal.add_picture(location)
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 (lines can be edited, and earlier ones come back with the arrow keys)
    terminal.run()


if __name__ == "__main__":
    with readable_errors():
        main()
