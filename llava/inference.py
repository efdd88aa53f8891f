"""A loaded model that answers: the load, prompt, generate loop that serving, the terminal and evaluation share.

It knows conversations, pictures and decoding options. It knows nothing of HTTP, web pages or benchmarks.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, TextIteratorStreamer

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, SeparatorStyle, conv_templates
from llava.mm_utils import KeywordsStoppingCriteria, get_model_name_from_path, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model

# The first word found in the checkpoint's name decides, where its config says nothing.
TEMPLATE_BY_NAME = (
    ("llama-2", "llava_llama_2"),
    ("orca", "mistral_orca"),
    ("hermes", "chatml_direct"),
    ("v1.6-34b", "chatml_direct"),
    ("mistral", "mistral_instruct"),
    ("mixtral", "mistral_instruct"),
    ("qwen", "qwen_1_5"),
    ("llama3", "llava_llama_3"),
    ("llama-3", "llava_llama_3"),
    ("move-kd", "vicuna_v1"),
    ("v1", "llava_v1"),
    ("mpt", "mpt"),
)
TEMPLATE_BY_TYPE = {
    "llava_qwen": "qwen_1_5",
    "llava_qwen_moe": "qwen_1_5",
    "llava_mistral": "mistral_instruct",
    "llava_mixtral": "mistral_instruct",
    "llava_gemma": "gemma_instruct",
    "move_llava_llama": "vicuna_v1",
}


def choose_template(model_name: str, config: Any) -> str:
    """The key in `conv_templates` that suits a checkpoint: what training recorded, else its name, else its type."""
    recorded = config.to_dict().get("conversation_template")
    if recorded in conv_templates:
        return recorded
    lowered = model_name.lower()
    for word, template in TEMPLATE_BY_NAME:
        if word in lowered:
            return template
    return TEMPLATE_BY_TYPE.get(config.model_type, "vicuna_v1")


def stop_string(conversation: Conversation) -> str | None:
    """What ends an answer in this template."""
    if conversation.stop_str:
        return conversation.stop_str
    first = (SeparatorStyle.SINGLE, SeparatorStyle.MPT, SeparatorStyle.CHATML, SeparatorStyle.GEMMA, SeparatorStyle.LLAMA_3)
    stop = conversation.sep if conversation.sep_style in first else conversation.sep2
    return stop.strip() or None if stop else None


@dataclass(frozen=True)
class Decoding:
    """temperature at or below 0.001 is greedy."""

    temperature: float = 0.2
    top_p: float | None = None
    num_beams: int = 1
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.max_new_tokens < 1 or self.num_beams < 1:
            raise ValueError(f"temperature must be >= 0, max_new_tokens and num_beams >= 1: got {self}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    def arguments(self) -> dict[str, Any]:
        if self.temperature <= 0.001:
            chosen: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        else:
            chosen = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
        return {**chosen, "num_beams": self.num_beams, "max_new_tokens": self.max_new_tokens, "use_cache": True}


class StopEvent(StoppingCriteria):
    """Ends generation at the next token once `event` is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device, dtype=torch.bool)  # type: ignore[return-value]


class Chat:
    """Answers to (conversation, pictures). `name` is the checkpoint's, `template` a key of `conv_templates`."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        image_processor: Any,
        context_length: int,
        name: str = "model",
        template: str | None = None,
    ) -> None:
        if template is not None and template not in conv_templates:
            raise ValueError(f"no conversation template {template!r}; there are {', '.join(sorted(conv_templates))}")
        self.tokenizer = tokenizer
        self.model = model.eval()
        self.image_processor = image_processor
        self.context_length = context_length
        self.name = name
        self.template = template or choose_template(name, model.config)

    @classmethod
    def load(cls, model_path: str, model_base: str | None = None, template: str | None = None, **options: Any) -> "Chat":
        """Loads a checkpoint; `options` are those of `load_pretrained_model`."""
        name = get_model_name_from_path(model_path)
        loaded = load_pretrained_model(model_path, model_base, name, **options)
        return cls(*loaded, name=name, template=template)

    @property
    def sees(self) -> bool:
        return self.image_processor is not None

    def conversation(self) -> Conversation:
        return conv_templates[self.template].copy()

    def inputs(self, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> dict[str, Any]:
        """Left-padded ids, mask and pictures for `model.generate`; pictures of prompt i are `images[i]`, in order.

        Raises ValueError when a prompt does not fit the context or names another number of pictures than it has.
        """
        for prompt, pictures in zip(prompts, images, strict=True):
            asked = prompt.count(DEFAULT_IMAGE_TOKEN)
            if asked != len(pictures):
                raise ValueError(f"the prompt names {asked} picture(s) ({DEFAULT_IMAGE_TOKEN}), {len(pictures)} were given")
        rows = [tokenizer_image_token(prompt, self.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt") for prompt in prompts]
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

    def _pictures(self, images: Sequence[Sequence[Image.Image]]) -> dict[str, Any]:
        """`images` and `image_sizes`; a prompt without a picture in a batch that has some gets an unused blank."""
        if not any(images):
            return {"images": None}
        if not self.sees:
            raise ValueError(f"{self.name} is a language model without a vision tower: it takes no pictures")
        side = self.image_processor.crop_size["height"]
        blank = [Image.new("RGB", (side, side))]
        flat = [picture.convert("RGB") for pictures in images for picture in (pictures or blank)]
        pixels = process_images(flat, self.image_processor, self.model.config)
        place = {"device": self.model.device, "dtype": self.model.dtype}
        moved = pixels.to(**place) if isinstance(pixels, torch.Tensor) else [item.to(**place) for item in pixels]
        return {"images": moved, "image_sizes": [picture.size for picture in flat]}

    def answer_all(
        self, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]], decoding: Decoding, stop: str | None = None
    ) -> list[str]:
        """One stripped answer per prompt, generated as one batch."""
        inputs = self.inputs(prompts, images)
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, **decoding.arguments())
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [(text.split(stop)[0] if stop else text).strip() for text in texts]

    def stream(
        self,
        prompt: str,
        images: Sequence[Image.Image],
        decoding: Decoding,
        stop: str | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[str]:
        """The answer so far, growing; ends early when `cancel` is set or the iterator is closed.

        Raises what generation raised.
        """
        cancel = cancel or threading.Event()
        inputs = self.inputs([prompt], [images])
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        criteria: list[StoppingCriteria] = [StopEvent(cancel)]
        if stop:
            criteria.append(KeywordsStoppingCriteria([stop], self.tokenizer, inputs["inputs"]))
        failures: list[BaseException] = []

        def generate() -> None:
            try:
                with torch.inference_mode():
                    self.model.generate(**inputs, **decoding.arguments(), streamer=streamer, stopping_criteria=criteria)
            except BaseException as failure:
                failures.append(failure)
                streamer.end()

        worker = threading.Thread(target=generate, daemon=True)
        worker.start()
        text = ""
        try:
            for piece in streamer:
                text += piece
                yield text.split(stop)[0].strip() if stop else text.strip()
        finally:
            cancel.set()
            worker.join()
        if failures:
            raise failures[0]
