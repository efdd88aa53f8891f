"""A conversation: turns, their pictures, and the prompt they make. The templates are in `conversation`."""

import base64
import dataclasses
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from llava.anyres import expand2square
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.prompt_layout import LAYOUTS, SeparatorStyle, Turn, render

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tiff", ".webp")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".wmv", ".flv", ".mpeg", ".mpg", ".webm")
PAD_COLOR = (122, 116, 104)


@dataclasses.dataclass
class Conversation:
    """A system prompt, turns and the way to write them down.

    messages: [role, text], [role, None] for the slot to be answered, or [role, (text, images, process mode)].
    offset: number of turns, counted from the front, that belong to the template and are not shown to a user.
    """

    system: str
    roles: Sequence[str]
    messages: list[list[Any]]
    offset: int
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"
    tokenizer_id: str = ""
    tokenizer: Any = None
    stop_str: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    skip_next: bool = False

    def get_prompt(self) -> str:
        """The text to tokenize; it ends where the model has to go on.

        Raises ValueError where the style cannot write the turns: LLAMA_2 opens with a question of the user,
        GEMMA alternates. LLAMA_3 is written by `tokenizer` if one is set (without its BOS, which tokenizing adds).
        """
        messages = self._messages_as_text()
        self._check_order(messages)
        if self.sep_style is SeparatorStyle.LLAMA_3 and self.tokenizer is not None:
            return self._prompt_by_tokenizer(messages)
        turns = [Turn(role, text or None, index % 2 == 1) for index, (role, text) in enumerate(messages)]
        pieces = render(LAYOUTS[self.sep_style], turns, system=self.system, sep=self.sep, sep2=self.sep2)
        return "".join(piece.text for piece in pieces)

    def _messages_as_text(self) -> list[tuple[str, str | None]]:
        first, *rest = self.messages or [[None, None]]
        if not isinstance(first[1], tuple):
            messages = [(role, self._text_of(message)) for role, message in self.messages]
        elif "mmtag" in self.version:
            question = first[1][0].replace(DEFAULT_IMAGE_TOKEN, "").strip()
            shown = (self.roles[0], f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>")
            messages = [shown, (self.roles[1], "Received."), (first[0], question)]
            messages += [(role, self._text_of(message)) for role, message in rest]
        else:
            messages = [(first[0], _with_leading_images(*first[1][:2]))]
            messages += [(role, self._text_of(message)) for role, message in rest]
        return messages

    def _text_of(self, message: Any) -> str | None:
        if not isinstance(message, tuple):
            return message
        if self.sep_style in (SeparatorStyle.CHATML, SeparatorStyle.QWEN, SeparatorStyle.LLAMA_3):
            missing = len(_as_list(message[1])) - message[0].count(DEFAULT_IMAGE_TOKEN)  # pages write them in the text
            return DEFAULT_IMAGE_TOKEN * missing + message[0]
        return message[0]

    def _check_order(self, messages: list[tuple[str, str | None]]) -> None:
        roles = [role for role, _ in messages]
        if self.sep_style is SeparatorStyle.LLAMA_2 and (roles[:1] != [self.roles[0]] or not messages[0][1]):
            raise ValueError(
                f"the first message of an [INST] prompt is a question of {self.roles[0]!r}, got {messages[:1]}"
            )
        alternating = [self.roles[index % 2] for index in range(len(roles))]
        if self.sep_style is SeparatorStyle.GEMMA and roles != alternating:
            raise ValueError(f"turns of a Gemma prompt alternate between {list(self.roles)}, got {roles}")

    def _prompt_by_tokenizer(self, messages: list[tuple[str, str | None]]) -> str:
        turns = [{"role": role, "content": text} for role, text in messages if text]
        turns.insert(0, {"role": "system", "content": self.system})
        prompt = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return prompt.removeprefix(self.tokenizer.bos_token or "")

    def append_message(self, role: str, message: Any) -> None:
        self.messages.append([role, message])

    def process_image(
        self,
        image: Any,
        image_process_mode: str,
        return_pil: bool = False,
        image_format: str = "PNG",
        max_len: int = 1344,
        min_len: int = 672,
    ) -> Image.Image | str:
        """A picture (PIL or path) as a chat page shows it: PIL, or base64 of a file in `image_format`.

        image_process_mode: Pad (square, grey canvas), Default or Crop (as it is), Resize (336 x 336).
        A picture longer than `max_len` is scaled down, its shorter side to `min_len` at most.
        """
        picture = Image.open(image).convert("RGB") if isinstance(image, str | Path) else image
        if image_process_mode == "Pad":
            picture = expand2square(picture, PAD_COLOR)
        elif image_process_mode == "Resize":
            picture = picture.resize((336, 336))
        elif image_process_mode not in ("Default", "Crop"):
            raise ValueError(f"Invalid image_process_mode: {image_process_mode}; use Pad, Resize, Crop or Default")
        if max(picture.size) > max_len:
            ratio = max(picture.size) / min(picture.size)
            short = int(min(max_len / ratio, min_len, min(picture.size)))
            sides = (int(short * ratio), short)
            picture = picture.resize(sides if picture.width >= picture.height else sides[::-1])
        return picture if return_pil else _as_base64(picture, image_format)

    def get_images(self, return_pil: bool = False, return_path: bool = False) -> list[Any]:
        """The pictures of the user's turns in order, processed; videos, and with `return_path` all, as given."""
        images = []
        for _, message in self.messages[self.offset :: 2]:
            if isinstance(message, tuple):
                _, pictures, mode = message
                for picture in _as_list(pictures):
                    is_kept = return_path or (isinstance(picture, str) and self.is_video_file(picture))
                    images.append(picture if is_kept else self.process_image(picture, mode, return_pil))
        return images

    def to_gradio_chatbot(self) -> list[list[str | None]]:
        """Pairs [question, answer]; pictures are inlined in the question as HTML at their `<image>`, or before it."""
        pairs: list[list[str | None]] = []
        for index, (_, message) in enumerate(self.messages[self.offset :]):
            if index % 2:
                pairs[-1][1] = message
                continue
            text = message
            if isinstance(message, tuple):
                text = _with_leading_images(*message[:2])
                for picture in _as_list(message[1]):
                    encoded = self.process_image(picture, "Default", image_format="JPEG")
                    tag = f'<img src="data:image/jpeg;base64,{encoded}" alt="user upload image" />'
                    text = text.replace(DEFAULT_IMAGE_TOKEN, tag, 1)
            pairs.append([text, None])
        return pairs

    def copy(self) -> "Conversation":
        """Messages are copied, pictures and tokenizer are shared."""
        return dataclasses.replace(self, messages=[[role, message] for role, message in self.messages])

    def dict(self) -> dict[str, Any]:
        """What a log keeps: no pictures."""
        texts = [[role, message[0] if isinstance(message, tuple) else message] for role, message in self.messages]
        return {
            "system": self.system,
            "roles": self.roles,
            "messages": texts,
            "offset": self.offset,
            "sep": self.sep,
            "sep2": self.sep2,
        }

    @staticmethod
    def is_image_file(filename: str) -> bool:
        return filename.lower().endswith(IMAGE_SUFFIXES)

    @staticmethod
    def is_video_file(filename: str) -> bool:
        return filename.lower().endswith(VIDEO_SUFFIXES)


def _as_list(images: Any) -> list[Any]:
    return list(images) if isinstance(images, list | tuple) else [images]


def _with_leading_images(text: str, images: Any) -> str:
    """`<image>` on a line of its own in front; a text that names several pictures keeps them where they are."""
    if text.count(DEFAULT_IMAGE_TOKEN) > 1:
        return text
    question = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
    return f"{DEFAULT_IMAGE_TOKEN}\n" * len(_as_list(images)) + question


def _as_base64(picture: Image.Image, image_format: str) -> str:
    buffer = BytesIO()
    opaque = picture.convert("RGB") if image_format == "JPEG" else picture
    opaque.save(buffer, format=image_format)
    return base64.b64encode(buffer.getvalue()).decode()
