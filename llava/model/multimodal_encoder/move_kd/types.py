"""Tensors that travel together between data workers, teachers, student and objectives.

Legend: B samples, T student tiles, M teacher images, N tokens, D width, E experts, S image side.
Nothing here knows a particular teacher, objective or language model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Fit = Literal["pad", "crop", "squash"]


@dataclass(frozen=True)
class View:
    """The part of one picture that one student tile shows.

    image: RGB at native resolution. fit: how the student made it square: "pad" centers it on a
    square canvas, "crop" takes the centered square, "squash" ignores the aspect ratio.
    key: identifies picture and region across runs (used by feature caches).
    """

    image: Image.Image
    fit: Fit
    key: str = ""


class Source(Protocol):
    """What the data workers prepare for a teacher, a tensor or a dict of tensors of fixed shape. Sources with equal
    keys are prepared once."""

    @property
    def key(self) -> str: ...

    def prepare(self, view: View) -> Any: ...

    def blank(self) -> Any:
        """What stands in, in form, for a sample without a picture."""


@dataclass(frozen=True)
class ImageSpec:
    """The source of every live teacher: a square image of its own resolution and statistics.

    fit: None follows the student's own way of making the view square.
    background: canvas color for "pad", 0 to 255; None takes int(mean * 255).
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit | None = None
    background: tuple[int, int, int] | None = None

    @property
    def key(self) -> str:
        """Equal for equal pixels: mean and std matter only through the canvas color."""
        canvas = "-".join(str(channel) for channel in self.canvas)
        return f"{self.size}px_{self.fit or 'student'}_{canvas}"

    @property
    def canvas(self) -> tuple[int, int, int]:
        if self.background is not None:
            return self.background
        red, green, blue = (int(channel * 255) for channel in self.mean)
        return red, green, blue

    def prepare(self, view: View) -> Tensor:
        """One view as (3, S, S) uint8."""
        square = make_square(view.image, self.fit or view.fit, self.canvas, self.size)
        if square.size != (self.size, self.size):
            square = square.resize((self.size, self.size), Image.Resampling.BICUBIC)
        # Channel by channel: Pillow takes them apart faster than a tensor is permuted.
        return torch.from_numpy(np.stack([np.asarray(channel) for channel in square.split()]))

    def blank(self) -> Tensor:
        """The stand-in for a sample without a picture: (3, S, S) uint8 zeros."""
        return torch.zeros(3, self.size, self.size, dtype=torch.uint8)


def make_square(image: Image.Image, fit: Fit, canvas: tuple[int, int, int], size: int) -> Image.Image:
    """`image` as a square: of its longer side ("pad"), or of `size` pixels, resized and then cut ("crop") as CLIP's
    processor does; "squash" leaves it to the resize."""
    width, height = image.size
    if width == height or fit == "squash":
        return image
    if fit == "pad":
        side = max(width, height)
        square = Image.new("RGB", (side, side), canvas)
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        return square
    wide, high = (size * side // min(width, height) for side in (width, height))
    left, top = (wide - size) // 2, (high - size) // 2
    # The box gives the pixels of resizing everything and cutting (to one level of 255), without a long picture's rest.
    box = (left * width / wide, top * height / high, (left + size) * width / wide, (top + size) * height / high)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def stack(values: Sequence[Any]) -> Any:
    """What M calls of `Source.prepare` gave, stacked: tensors, or dicts of tensors."""
    if isinstance(values[0], Mapping):
        return {key: stack([value[key] for value in values]) for key in values[0]}
    if not isinstance(values[0], Tensor):
        raise TypeError(f"Source.prepare must give tensors or dicts of tensors, got {type(values[0]).__name__}")
    return torch.stack(list(values))


def split(stacked: Any, size: int | None) -> list[Any]:
    """What `stack` gave in parts of at most `size`; None keeps it whole."""
    if not isinstance(stacked, Mapping):
        return list(stacked.split(size or len(stacked)))
    columns = [split(values, size) for values in stacked.values()]
    return [dict(zip(stacked, row, strict=True)) for row in zip(*columns, strict=True)]


class Routing(NamedTuple):
    """One expert layer's decision. probs: (T, 1 + N, E) float32, softmax of the router.
    choice: (T, 1 + N) int64, the expert with the largest probability."""

    probs: Tensor
    choice: Tensor


class StudentFeatures(NamedTuple):
    """What the vision tower gives for T tiles, at the selected layer.

    features: (T, N', D) what the projector sees (N' is N, or 1 + N for `cls_patch`).
    patches: (T, N, D) without the class token, row-major over the grid. cls: (T, D).
    cls_attention: (T, N) attention of the class token in the block that made `patches`, averaged over heads,
    given only where it was asked for. routing: one entry per expert layer that ran.
    solos: (K, T, N, D) the patches of the first K experts, each alone, given only where they were asked for.
    """

    features: Tensor
    patches: Tensor
    cls: Tensor | None = None
    cls_attention: Tensor | None = None
    routing: tuple[Routing, ...] = ()
    solos: Tensor | None = None


class TeacherFeatures(NamedTuple):
    """patches: (M, N, D), row-major over grid (H, W). cls: (M, D). cls_attention: (M, N)."""

    patches: Tensor
    grid: tuple[int, int]
    cls: Tensor | None = None
    cls_attention: Tensor | None = None


class Pair(NamedTuple):
    """One teacher beside the student, token by token on the student's grid; what an objective pulls together.

    prediction comes from the student, target from the teacher; both (M, N, D) float32. D is the student's width where
    the teacher was mapped to the student, the teacher's (times its finer tokens) where a head predicts the teacher.
    """

    prediction: Tensor
    target: Tensor


class DistillInputs(NamedTuple):
    """Everything an objective may ask for.

    student: all T tiles. grid: (H, W) of its patches. tile_index: (M,) the tile that each teacher image shows.
    teachers: raw features by name, M images each. pairs: the teachers that are targets, anchor first.
    weight: (M,), tile_weight: (T,); 1 for a picture, 0 (or what the recipe says) for a blank.
    """

    student: StudentFeatures
    grid: tuple[int, int]
    teachers: Mapping[str, TeacherFeatures]
    pairs: Mapping[str, Pair]
    tile_index: Tensor
    weight: Tensor
    tile_weight: Tensor
