"""Pix2Struct-L: the encoder of the screenshot-reading model, on a 45 x 45 grid resized to 32 x 32.

It has no fixed statistics: each picture is standardized by its own mean and deviation, on the device.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Pix2StructVisionModel

from llava.model.multimodal_encoder.move_kd.teachers._weights import check_model_type, load_pretrained
from llava.model.multimodal_encoder.move_kd.teachers.base import (
    CLIP_MEAN,
    BuildContext,
    Defaults,
    FrozenTeacher,
)
from llava.model.multimodal_encoder.move_kd.types import ImageSpec, TeacherFeatures

MAX_PATCHES = 2048


def standardize(pixels: Tensor) -> Tensor:
    """(M, 3, S, S) of any range to zero mean and unit deviation over each whole picture, float32."""
    pixels = pixels.float()
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    deviation = pixels.std(dim=(1, 2, 3), keepdim=True, correction=0)
    return (pixels - mean) / deviation.clamp(min=1.0 / math.sqrt(pixels[0].numel()))


def flatten_patches(pixels: Tensor, side: int, patch: int) -> Tensor:
    """(M, 3, S, S) to (M, side * side, 2 + patch * patch * 3): row and column from 1, then the patch, color last."""
    pixels = F.interpolate(pixels, (side * patch, side * patch), mode="bilinear", antialias=True)
    patches = pixels.unflatten(3, (side, patch)).unflatten(2, (side, patch))  # (M, 3, rows, p, columns, p)
    patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    index = torch.arange(1, side + 1, device=pixels.device, dtype=pixels.dtype)
    rows, columns = index.repeat_interleave(side), index.repeat(side)
    places = torch.stack((rows, columns), dim=-1).expand(len(patches), -1, -1)
    return torch.cat((places, patches), dim=-1)


class Pix2Struct(FrozenTeacher):
    defaults = Defaults(
        paths=("checkpoints/pix2struct", "google/pix2struct-large"),
        size=1024,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        licence="Apache-2.0",
    )
    options: ClassVar = {"grid": "32", "max_patches": str(MAX_PATCHES)}
    net: Pix2StructVisionModel

    def load(self, context: BuildContext) -> Pix2StructVisionModel:
        if self.spec.mean or self.spec.std:
            raise self.refuse("pix2struct standardizes each picture by itself; leave out mean and std")
        owner = f"teacher {self.name!r}"
        accepted = ("pix2struct", "pix2struct_vision_model")
        whole = check_model_type(self.path, accepted, owner) == "pix2struct"
        mapping = {r"^encoder\.(embeddings|encoder|layernorm)\.": r"\1."} if whole else None
        net = load_pretrained(
            Pix2StructVisionModel,
            self.path,
            model_types=accepted,
            owner=owner,
            ignore=(r"decoder\.",),
            key_mapping=mapping,
        )
        self.patch = round((net.config.patch_embed_hidden_size // 3) ** 0.5)
        self.side = int(self._number("max_patches") ** 0.5)
        return net

    def _number(self, key: str) -> int:
        if not self.choices[key].isdecimal() or int(self.choices[key]) < 1:
            raise self.refuse(f"{key} must be a positive whole number, not {self.choices[key]!r}")
        return int(self.choices[key])

    def make_source(self) -> ImageSpec:
        canvas = tuple(int(channel * 255) for channel in CLIP_MEAN)
        return ImageSpec(self.size, self.mean, self.std, self.spec.fit, background=canvas)  # type: ignore[arg-type]

    def layout(self) -> tuple[tuple[int, int], int]:
        side = self._number("grid")
        return (side, side), self.net.config.hidden_size

    def normalize(self, pixels: Tensor) -> Tensor:
        return standardize(pixels)

    def encode(self, pixels: Tensor) -> TeacherFeatures:
        patches = flatten_patches(pixels, self.side, self.patch).to(self.dtype)
        # Every patch is real, so no mask is needed; the model's own forward would read one back from the device.
        hidden = self.net.encoder(self.net.embeddings(patches), attention_mask=None).last_hidden_state
        tokens = self.net.layernorm(hidden)  # (M, side * side, D)
        if self.grid != (self.side, self.side):
            square = tokens.transpose(1, 2).unflatten(2, (self.side, self.side)).float()
            square = F.interpolate(square, self.grid, mode="bilinear", align_corners=True)
            tokens = square.flatten(2).transpose(1, 2).to(self.dtype)
        return TeacherFeatures(tokens, self.grid)


TEACHER = Pix2Struct
