"""The chat interface: a task gives messages in which text and pictures alternate."""

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import Instance
from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.lmms_eval_plugin.base import MoveKD, Request, pictures_only

Message = dict[str, Any]


def flatten(content: Sequence[Message]) -> tuple[str, list[Image.Image]]:
    """A message's text with `<image>` and a line break where a picture stands, and the pictures in order."""
    text, images = "", []
    for part in content:
        if part["type"] == "text":
            text += part["text"]
        else:
            images += pictures_only([part["url"]])
            text += DEFAULT_IMAGE_TOKEN + "\n"
    return text, images


def turns_of(messages: Sequence[Message]) -> tuple[list[tuple[str, str | None]], list[Image.Image]]:
    """(question, answer) turns, the last answer open, and all pictures. A system message opens the first question."""
    turns: list[tuple[str, str | None]] = []
    images: list[Image.Image] = []
    opening = ""
    for message in messages:
        text, shown = flatten(message["content"])
        images += shown
        if message["role"] == "system":
            opening += text + "\n"
        elif message["role"] == "user":
            if turns and turns[-1][1] is None:
                turns[-1] = (f"{turns[-1][0]}\n{text}", None)
            else:
                turns.append((opening + text, None))
                opening = ""
        elif turns:
            turns[-1] = (turns[-1][0], text)
        else:
            raise ValueError("the task's messages begin with an answer; the first must be the user's")
    if not turns or turns[-1][1] is not None:
        raise ValueError("the task's last message must be the user's")
    return turns, images


class ChatMoveKD(MoveKD):
    is_simple = False

    def generate_until(self, requests: list[Instance]) -> list[str]:
        asked = []
        for _, doc_to_messages, settings, doc_id, task, split in (request.args for request in requests):
            turns, images = turns_of(doc_to_messages(self.task_dict[task][split][doc_id]))
            asked.append(Request(self.prompt(turns), images, settings))
        return self.answer(asked)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("lmms-eval ranks answers through the simple interface: add --force_simple")
