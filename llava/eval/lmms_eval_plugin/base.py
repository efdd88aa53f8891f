"""What both of our lmms-eval classes share: loading, placement, batches, and answers from a `Chat`.

Pictures only: tasks that show videos need one of lmms-eval's own video wrappers.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.answering import tell_overlong
from llava.inference import Chat, Decoding, place, stop_string, until_stop

T = TypeVar("T")


class Request(NamedTuple):
    """One thing to generate. text: the whole prompt. settings: the task's generation_kwargs."""

    text: str
    images: list[Image.Image]
    settings: dict[str, Any]


def decoding_of(settings: dict[str, Any]) -> Decoding:
    """lmms-eval's defaults: greedy, 1024 new tokens. As in its own wrappers temperature decides, not do_sample."""
    return Decoding(
        temperature=settings.get("temperature") or 0.0,
        top_p=settings.get("top_p"),
        num_beams=settings.get("num_beams", 1),
        max_new_tokens=settings.get("max_new_tokens", 1024),
    )


def pictures_only(visuals: Sequence[Any] | None) -> list[Image.Image]:
    """Raises ValueError for a video or a sound among the visuals."""
    for visual in visuals or ():
        if not isinstance(visual, Image.Image):
            raise ValueError(f"move_kd takes pictures, the task gave a {type(visual).__name__}: {str(visual)[:80]}")
    return list(visuals or ())


def batches(items: Sequence[T], size: int, group: Callable[[T], Any], cost: Callable[[T], int]) -> Iterator[list[int]]:
    """Indices in batches of one group each, the costliest first."""
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(json.dumps(group(item), sort_keys=True), []).append(index)
    for indices in groups.values():
        ordered = sorted(indices, key=lambda index: -cost(items[index]))
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size]


class MoveKD(lmms):
    """model_args: pretrained, and what is named below. `device` and `batch_size` come from lmms-eval's own flags.

    conv_template: None takes what the checkpoint was trained with. dtype: auto is float16 on a GPU, float32 on a CPU.
    device_map: `auto` spreads one model over all GPUs. use_until: end answers at the task's `until` strings as well,
    which lmms-eval's `llava` does not. Under `accelerate launch` each process holds the model and answers its share.
    """

    def __init__(
        self,
        pretrained: str,
        model_base: str | None = None,
        model_name: str | None = None,
        conv_template: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        device_map: str | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        load_4bit: bool = False,
        load_8bit: bool = False,
        use_until: bool = False,
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator(cpu=device == "cpu")
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        options = place(str(self.accelerator.device) if self._world_size > 1 else device or "auto")
        if dtype != "auto":
            options["torch_dtype"] = dtype
        if device_map is not None:
            options["device_map"] = device_map
        if attn_implementation is not None:
            options["attn_implementation"] = attn_implementation
        options |= {"load_4bit": load_4bit, "load_8bit": load_8bit}
        self.chat = Chat.load(pretrained, model_base, conv_template, model_name, **options)
        self.batch_size = int(batch_size)
        self.use_until = use_until

    @property
    def device(self) -> torch.device:
        return self.chat.model.device

    def clean(self) -> None:
        """lmms-eval frees the model before tasks are scored."""
        self.chat.model.to("cpu")
        super().clean()

    def visible(self, text: str, count: int, joint: str) -> str:
        """`text` with `count` image tokens in front, unless it places them itself."""
        if not count or DEFAULT_IMAGE_TOKEN in text:
            return text
        return joint.join([DEFAULT_IMAGE_TOKEN] * count) + "\n" + text

    def prompt(self, turns: Sequence[tuple[str, str | None]]) -> str:
        """The whole prompt of (question, answer) turns; the last answer may be open."""
        conversation = self.chat.conversation()
        for question, answer in turns:
            conversation.append_message(conversation.roles[0], question)
            conversation.append_message(conversation.roles[1], answer)
        return conversation.get_prompt()

    def answer(self, requests: Sequence[Request]) -> list[str]:
        """One answer a request, in their order."""
        answers = [""] * len(requests)
        stop = stop_string(self.chat.conversation())
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding") as progress:
            for batch in batches(requests, self.batch_size, lambda request: request.settings, lambda r: len(r.text)):
                chosen = [requests[index] for index in batch]
                settings = chosen[0].settings
                texts = self.chat.answer_all(
                    [request.text for request in chosen],
                    [request.images for request in chosen],
                    decoding_of(settings),
                    stop,
                )
                until = settings.get("until", []) if self.use_until else []
                for index, text in zip(batch, texts, strict=True):
                    answers[index] = until_stop(text, [until] if isinstance(until, str) else until)
                    self.cache_hook.add_partial("generate_until", (requests[index].text, settings), answers[index])
                progress.update(len(batch))
        tell_overlong(self.chat)
        return answers

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("move_kd answers tasks of one round (generate_until), not several")
