"""SigLIP 2 and SigLIP: final normed patch tokens. NaFlex checkpoints are given squares like those of fixed size."""

from typing import Any

import torch
from torch import Tensor
from transformers import Siglip2VisionModel, SiglipVisionModel

from llava.model.multimodal_encoder.move_kd.teachers._weights import check_model_type, load_pretrained
from llava.model.multimodal_encoder.move_kd.teachers.base import (
    HALF_MEAN,
    HALF_STD,
    BuildContext,
    Defaults,
    FrozenTeacher,
    square_grid,
)
from llava.model.multimodal_encoder.move_kd.types import TeacherFeatures

FIXED, FLEXIBLE = ("siglip", "siglip_vision_model"), ("siglip2", "siglip2_vision_model")
OTHER_PARTS = (r"text_model\.", r"logit_scale$", r"logit_bias$")


def flatten_patches(pixels: Tensor, patch: Any) -> Tensor:
    """(M, 3, S, S) to (M, N, patch * patch * 3), row-major, color last."""
    side = pixels.shape[-1] // patch
    patches = pixels.unflatten(3, (side, patch)).unflatten(2, (side, patch))  # (M, 3, rows, p, columns, p)
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class Siglip2(FrozenTeacher):
    defaults = Defaults(
        paths=("google/siglip2-so400m-patch16-384",),
        size=None,
        mean=HALF_MEAN,
        std=HALF_STD,
        licence="Apache-2.0",
    )
    net: SiglipVisionModel | Siglip2VisionModel

    def load(self, context: BuildContext) -> SiglipVisionModel | Siglip2VisionModel:
        owner = f"teacher {self.name!r}"
        self.is_flexible = check_model_type(self.path, (*FIXED, *FLEXIBLE), owner) in FLEXIBLE
        model_class = Siglip2VisionModel if self.is_flexible else SiglipVisionModel
        net = load_pretrained(model_class, self.path, model_types=(*FIXED, *FLEXIBLE), owner=owner, ignore=OTHER_PARTS)
        if self.is_flexible:
            self.native_size = int(net.config.num_patches**0.5) * net.config.patch_size
        else:
            self.native_size = net.config.image_size
        return net

    def layout(self) -> tuple[tuple[int, int], int]:
        return square_grid(self.size, self.net.config.patch_size, self), self.net.config.hidden_size

    def encode(self, pixels: Tensor) -> TeacherFeatures:
        if self.is_flexible:
            hidden = self._encode_flexible(pixels)
        else:
            hidden = self.net.embeddings(pixels, interpolate_pos_encoding=self.size != self.native_size)
        tokens = self.net.post_layernorm(self.net.encoder(inputs_embeds=hidden, **self._mask()).last_hidden_state)
        return TeacherFeatures(tokens, self.grid)

    def _mask(self) -> dict[str, None]:
        return {"attention_mask": None}  # every patch is real

    def _encode_flexible(self, pixels: Tensor) -> Tensor:
        # The shapes stay on the host: the embedding reads them as numbers.
        shapes = torch.tensor([self.grid] * len(pixels))
        return self.net.embeddings(flatten_patches(pixels, self.net.config.patch_size), shapes)


TEACHER = Siglip2
