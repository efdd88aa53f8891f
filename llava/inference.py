"""A loaded model that answers: the load, prompt, generate loop that serving, the terminal and evaluation share.

It knows conversations, pictures and decoding options. It knows nothing of HTTP, web pages or benchmarks.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, TextIteratorStreamer

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, conv_templates
from llava.mm_utils import KeywordsStoppingCriteria, get_model_name_from_path, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.tokenizer import end_tokens
from llava.template_choice import check_template, choose_template, stop_string, until_stop
from llava.token_count import count_tokens

__all__ = ["Chat", "ContextExceeded", "Decoding", "Turn", "choose_template", "image_prefix", "place", "stop_string"]

# No token is longer than this on average, so that text beyond it need not be tokenized to be refused.
CHARACTERS_PER_TOKEN = 64


class ContextExceeded(ValueError):
    """A prompt with its pictures leaves no room for an answer."""


@dataclass(frozen=True)
class Decoding:
    """temperature at or below 0.001 is greedy."""

    temperature: float = 0.2
    top_p: float | None = None
    num_beams: int = 1
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be a number from 0 on, got {self.temperature}")
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise ValueError(
                f"max_new_tokens and num_beams must be at least 1, got {self.max_new_tokens} and {self.num_beams}"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    def arguments(self) -> dict[str, Any]:
        if self.temperature <= 0.001:
            chosen: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        else:
            chosen = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
        return {**chosen, "num_beams": self.num_beams, "max_new_tokens": self.max_new_tokens, "use_cache": True}


@dataclass(frozen=True)
class Turn:
    """A question with its pictures, and its answer once there is one. text: without image tokens."""

    text: str
    images: tuple[Image.Image, ...] = ()
    answer: str | None = None


class Prompt(NamedTuple):
    """What is generated from. text: with one `<image>` for each of `images`. stop: what ends the answer."""

    text: str
    images: list[Image.Image]
    stop: str | None


class StopEvent(StoppingCriteria):
    """Ends generation at the next token once `event` is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device, dtype=torch.bool)  # type: ignore[return-value]


def place(device: str) -> dict[str, Any]:
    """Options of `load_pretrained_model` for a device: `auto` or `cuda` take the GPUs if there are any, else the CPU.

    Half precision on an accelerator, float32 on the CPU.
    """
    if device in ("auto", "cuda"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"device": device, "torch_dtype": "float32" if device == "cpu" else "float16"}


class Chat:
    """Answers to (conversation, pictures). `name` is the checkpoint's, `template` a key of `conv_templates`.

    overlong: how many prompts of `answer_all` so far had more tokens with their pictures than `prompt_limit`.
    Several threads may call one Chat.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        image_processor: Any,
        context_length: int,
        name: str = "model",
        template: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.model = model.eval()
        self.settings = model.config.to_dict()
        self.image_processor = image_processor
        self.context_length = context_length
        self.name = name
        self.template = check_template(template) if template else choose_template(name, model.config)
        self.overlong = 0
        self._tokenizing = threading.Lock()  # fast tokenizers refuse to be borrowed twice

    @classmethod
    def load(
        cls,
        model_path: str,
        model_base: str | None = None,
        template: str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> "Chat":
        """Loads a checkpoint; `options` are those of `load_pretrained_model`. name: None takes the path's last part."""
        if template:
            check_template(template)
        name = name or get_model_name_from_path(model_path)
        return cls(*load_pretrained_model(model_path, model_base, name, **options), name=name, template=template)

    @property
    def sees(self) -> bool:
        return self.image_processor is not None

    def conversation(self, template: str | None = None) -> Conversation:
        return conv_templates[check_template(template or self.template)].copy()

    def prompt(self, turns: Sequence[Turn], template: str | None = None) -> Prompt:
        """The turns in the checkpoint's template, or another; the last one's answer is still to be given."""
        conversation = self.conversation(template)
        user, assistant = conversation.roles
        for index, turn in enumerate(turns):
            message: Any = image_prefix(self, len(turn.images)) + turn.text
            if index == 0 and turn.images and "mmtag" in conversation.version:
                message = (turn.text, list(turn.images), "Default")  # the template announces pictures in its own words
            conversation.append_message(user, message)
            conversation.append_message(assistant, turn.answer)
        images = [image for turn in turns for image in turn.images]
        return Prompt(conversation.get_prompt(), images, stop_string(conversation))

    def inputs(self, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> dict[str, Any]:
        """Left-padded ids, mask and pictures for `model.generate`; pictures of prompt i are `images[i]`, in order.

        Raises ValueError when a prompt names another number of pictures than it has.
        """
        for prompt, pictures in zip(prompts, images, strict=True):
            self._check(prompt, len(pictures))
        with self._tokenizing:
            rows = [torch.tensor(tokenizer_image_token(prompt, self.tokenizer)) for prompt in prompts]
        length = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.full((len(rows), length), pad, dtype=torch.long)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for index, row in enumerate(rows):
            ids[index, length - len(row) :] = row
            mask[index, length - len(row) :] = True
        device = self.model.device
        return {
            "inputs": ids.to(device),
            "attention_mask": mask.to(device),
            "pad_token_id": pad,
            **self._pictures(images),
        }

    def _check(self, prompt: str, count: int) -> None:
        asked = prompt.count(DEFAULT_IMAGE_TOKEN)
        if asked != count:
            raise ValueError(f"the prompt names {asked} picture(s) ({DEFAULT_IMAGE_TOKEN}), {count} were given")
        if count and not self.sees:
            raise ValueError(f"{self.name} is a language model without a vision tower: it takes no pictures")

    def _pictures(self, images: Sequence[Sequence[Image.Image]]) -> dict[str, Any]:
        """`images` and `image_sizes`; a prompt without a picture in a batch that has some gets an unused blank."""
        if not any(images):
            return {"images": None} if self.sees else {}
        side = self.image_processor.crop_size["height"]
        blank = [Image.new("RGB", (side, side))]
        flat = [picture.convert("RGB") for pictures in images for picture in (pictures or blank)]
        pixels = process_images(flat, self.image_processor, self.model.config)
        target = {"device": self.model.device, "dtype": self.model.dtype}
        moved = pixels.to(**target) if isinstance(pixels, Tensor) else [item.to(**target) for item in pixels]
        return {"images": moved, "image_sizes": [picture.size for picture in flat]}

    @property
    def prompt_limit(self) -> int:
        """Tokens of the longest prompt that reaches the model whole; what is longer would be cut at its end."""
        cut = self.settings.get("tokenizer_model_max_length")
        return min(self.context_length, int(cut)) if cut else self.context_length

    def room(self, inputs: dict[str, Any]) -> int:
        """How many tokens an answer may have. Raises ContextExceeded if there is no room for one."""
        used = count_tokens(self.model, inputs)
        room = self.context_length - used
        if used > self.prompt_limit or room < 1:
            raise ContextExceeded(
                f"the conversation has {used:,} tokens with its pictures, {self.name} can read "
                f"{min(self.prompt_limit, self.context_length - 1):,}; start a new one, or leave out pictures"
            )
        return room

    def answer_all(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[Image.Image]],
        decoding: Decoding,
        stop: str | None = None,
    ) -> list[str]:
        """One stripped answer per prompt, generated as one batch. Raises what `inputs` raises.

        A prompt that is too long is answered as in LLaVA: the model cuts its end at the length that it was trained
        with, if its config names one, and reads all of it otherwise. `overlong` counts them.
        """
        inputs = self.inputs(prompts, images)
        if count_tokens(self.model, inputs) > self.prompt_limit:
            alone = (self.inputs([prompt], [pictures]) for prompt, pictures in zip(prompts, images, strict=True))
            self.overlong += sum(count_tokens(self.model, one) > self.prompt_limit for one in alone)
        # The text that is cut below no longer has a stop that is a special token.
        ends = end_tokens(self.tokenizer, self.model.generation_config.eos_token_id, stop)
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, **decoding.arguments(), eos_token_id=ends or None)
        if not self.sees:  # a plain language model repeats the prompt
            tokens = tokens[:, inputs["inputs"].shape[1] :]
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [until_stop(text, [stop] if stop else []) for text in texts]

    def stream(
        self,
        prompt: str,
        images: Sequence[Image.Image],
        decoding: Decoding,
        stop: str | Sequence[str] | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[str]:
        """The answer so far, growing; ends early when `cancel` is set or the iterator is closed.

        It is no longer than the context allows. Raises what `inputs`, `room` and generation raise.
        """
        if len(prompt) > CHARACTERS_PER_TOKEN * self.prompt_limit:
            raise ContextExceeded(
                f"the prompt has {len(prompt):,} characters, far more than the {self.prompt_limit} tokens that "
                f"{self.name} can read"
            )
        cancel = cancel or threading.Event()
        stops = [stop] if isinstance(stop, str) else [text for text in stop or [] if text]
        inputs = self.inputs([prompt], [images])
        decoding = replace(decoding, max_new_tokens=min(decoding.max_new_tokens, self.room(inputs)))
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        criteria: list[StoppingCriteria] = [StopEvent(cancel)]
        if stops:
            criteria.append(KeywordsStoppingCriteria(stops, self.tokenizer, inputs["inputs"]))

        def generate() -> None:
            with torch.inference_mode():
                self.model.generate(**inputs, **decoding.arguments(), streamer=streamer, stopping_criteria=criteria)

        text = ""
        for piece in _streamed(generate, streamer, cancel):
            text += piece
            yield until_stop(text, stops, is_final=False)
        yield until_stop(text, stops)


def _streamed(generate: Callable[[], None], streamer: TextIteratorStreamer, cancel: threading.Event) -> Iterator[str]:
    """The pieces of text while `generate` runs in a thread; sets `cancel` when nobody wants them any longer."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            generate()
        except BaseException as failure:
            failures.append(failure)
            streamer.end()

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    try:
        yield from streamer
    finally:
        cancel.set()
        worker.join()
    if failures:
        raise failures[0]


def image_prefix(chat: Chat, count: int) -> str:
    """`count` image tokens, each on a line of its own, wrapped as the checkpoint was trained."""
    token = DEFAULT_IMAGE_TOKEN
    if chat.settings.get("mm_use_im_start_end"):
        token = DEFAULT_IM_START_TOKEN + token + DEFAULT_IM_END_TOKEN
    return (token + "\n") * count
