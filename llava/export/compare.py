"""Does an exported model see, read and answer as the one it was made from? Measured, with a tolerance for each.

What the model itself gives is recorded first (`Expected`), so that it can leave memory before the export is loaded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava.export.processor import collapsed_ids
from llava.inference import Chat, Turn
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.checkpoint_io import CheckpointError

# Largest difference of a logit or a feature, as a share of the largest, that rounding explains.
ROUNDING = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
PIXEL_LEVELS = 0.01  # of the 255 that a channel has: equal pictures differ by rounding of float32 only
SHAPES = ((1.0, 1.0), (1.7, 0.8), (0.6, 1.9), (3.1, 0.9))  # width and height of pictures, in sides of the tower's image
BACKEND = "pil"  # as LLaVA resizes; torchvision's differs by a few levels


class Finding(NamedTuple):
    """One comparison. difference: in the unit that `what` names."""

    what: str
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        verdict = "" if self.holds else "  <- TOO LARGE"
        return f"{self.what}: {self.difference:.2g} (at most {self.tolerance:g}){verdict}"


@dataclass(frozen=True)
class Dialog:
    """A chat as both sides write it: LLaVA's turns, and what they gave. ids: one placeholder for each picture."""

    turns: tuple[Turn, ...]
    prompt: str
    ids: list[int]

    @property
    def messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        for turn in self.turns:
            content = [{"type": "image"} for _ in turn.images] + [{"type": "text", "text": turn.text}]
            messages.append({"role": "user", "content": content})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        return messages

    @property
    def images(self) -> list[Image.Image]:
        return [image for turn in self.turns for image in turn.images]


@dataclass(frozen=True)
class Expected:
    """What a model gave. pixels: one tensor per picture. logits: (1, L, V) float32 for the last dialog."""

    dialogs: list[Dialog]
    pictures: list[Image.Image]
    pixels: list[Tensor]
    image_std: Tensor
    logits: Tensor
    dtype: torch.dtype


def sample_pictures(side: int) -> list[Image.Image]:
    """Smooth color noise of several shapes, the same at every call."""
    random = np.random.default_rng(0)
    pictures = []
    for wide, high in SHAPES:
        coarse = random.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        size = (max(1, round(side * wide)), max(1, round(side * high)))
        pictures.append(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    return pictures


def dialogs_of(chat: Chat, pictures: Sequence[Image.Image]) -> list[Dialog]:
    """Without a picture, with several in one turn, in two turns; the last one is short, for the logits."""
    first, second, third, _ = pictures
    talks: list[tuple[Turn, ...]] = [
        (Turn("What is a picture?"),),
        (Turn("Which one is larger?", (first, second)),),
        (Turn("What is this?", (second,), "A plain."), Turn("And this?", (third,), "Noise."), Turn("Sure?")),
        (Turn("Name the colors.", (second,), "Red."), Turn("Any more?")),
    ]
    dialogs = []
    for turns in talks:
        prompt = chat.prompt(turns).text
        dialogs.append(Dialog(turns, prompt, list(tokenizer_image_token(prompt, chat.tokenizer))))
    return dialogs


@torch.inference_mode()
def record(chat: Chat) -> Expected:
    """What the model gives before it is exported."""
    pictures = sample_pictures(chat.model.get_vision_tower().image_size)
    dialogs = dialogs_of(chat, pictures)
    pixels = [process_images([picture], chat.image_processor, chat.model.config)[0] for picture in pictures]
    inputs = chat.inputs([dialogs[-1].prompt], [dialogs[-1].images])
    inputs = {"input_ids": inputs["inputs"], "images": inputs["images"], "image_sizes": inputs["image_sizes"]}
    logits = chat.model(**inputs).logits.float().cpu()
    std = torch.tensor([float(value) for value in chat.image_processor.image_std])
    return Expected(dialogs, pictures, pixels, std, logits, chat.model.dtype)


def compare(expected: Expected, directory: Path, device: str) -> list[Finding]:
    """Load the export as its users do, with transformers' Auto classes, and measure."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(directory, backend=BACKEND, trust_remote_code=True)
    findings = [
        _prompts(expected, processor),
        _ids(expected, processor),
        _pixels(expected, processor),
    ]
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        directory, trust_remote_code=True, dtype=expected.dtype, output_loading_info=True
    )
    model, report = loaded
    check_complete(report, directory)
    return [*findings, _logits(expected, processor, model.to(device).eval())]


def check_complete(report: dict[str, Any], directory: Path) -> None:
    """Raises CheckpointError if transformers found tensors missing, left over or of another shape."""
    wrong = {kind: sorted(map(str, names))[:4] for kind, names in report.items() if names}
    if wrong:
        raise CheckpointError(f"transformers does not read the weights in {directory} whole: {wrong}. Do not use them.")


def verify(findings: Sequence[Finding], directory: Path, say: Callable[[str], None] = print) -> None:
    """Print the findings. Raises CheckpointError if one is above its tolerance."""
    for finding in findings:
        say(f"  {finding}")
    bad = [finding.what for finding in findings if not finding.holds]
    if bad:
        raise CheckpointError(f"the export in {directory} differs from its model in {'; '.join(bad)}. Do not use it.")


def _prompts(expected: Expected, processor: Any) -> Finding:
    written = [
        processor.apply_chat_template(dialog.messages, add_generation_prompt=True) for dialog in expected.dialogs
    ]
    wrong = sum(text != dialog.prompt for text, dialog in zip(written, expected.dialogs, strict=True))
    return Finding(f"prompts that differ, of {len(written)}", wrong, 0)


def _ids(expected: Expected, processor: Any) -> Finding:
    image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    wrong = sum(
        collapsed_ids(processor.tokenizer(dialog.prompt).input_ids, image) != dialog.ids for dialog in expected.dialogs
    )
    return Finding(f"prompts whose token ids differ, of {len(expected.dialogs)}", wrong, 0)


def _pixels(expected: Expected, processor: Any) -> Finding:
    largest = 0.0
    for picture, ours in zip(expected.pictures, expected.pixels, strict=True):
        theirs = processor.image_processor([picture], return_tensors="pt")["pixel_values"][0]
        if theirs.shape != ours.shape:
            return Finding(f"pixels, of shape {tuple(theirs.shape)} and not {tuple(ours.shape)}", float("inf"), 0)
        levels = (theirs - ours).abs() * expected.image_std[:, None, None] * 255
        largest = max(largest, float(levels.max()))
    return Finding(f"pixels of {len(expected.pictures)} pictures, in levels of 255", largest, PIXEL_LEVELS)


@torch.inference_mode()
def _logits(expected: Expected, processor: Any, model: Any) -> Finding:
    dialog = expected.dialogs[-1]
    inputs = processor(text=dialog.prompt, images=dialog.images, return_tensors="pt").to(model.device, model.dtype)
    logits = model(**inputs).logits.float().cpu()[..., : expected.logits.shape[-1]]
    if logits.shape != expected.logits.shape:
        counts = f"{logits.shape[1]} tokens and not {expected.logits.shape[1]}"
        return Finding(f"logits, of {counts}", float("inf"), ROUNDING[expected.dtype])
    return Finding("logits, as a share of the largest", relative(logits, expected.logits), ROUNDING[expected.dtype])


def relative(given: Tensor, wanted: Tensor) -> float:
    """The largest difference as a share of the largest value wanted; infinite if it is not finite."""
    difference = float((given - wanted).abs().max() / wanted.abs().max())
    return difference if difference == difference else float("inf")
