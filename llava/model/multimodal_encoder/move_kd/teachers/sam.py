"""SAM ViT-L: the image encoder with its neck, one token of 256 channels per 16 x 16 pixels.

A transformers folder, or the authors' own file (`sam:path=sam_vit_l_0b3195.pth`).

`layout=upstream` gives the released code's order of the same numbers, which mixes channels with positions; adapters
published with MoVE-KD v1.1 were trained on it, and nothing else should use it.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SamVisionModel

from llava.model.multimodal_encoder.move_kd.teachers._sam_file import load_original, original_file
from llava.model.multimodal_encoder.move_kd.teachers._weights import load_pretrained
from llava.model.multimodal_encoder.move_kd.teachers.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BuildContext,
    Defaults,
    FrozenTeacher,
    square_grid,
)
from llava.model.multimodal_encoder.move_kd.types import TeacherFeatures

OTHER_PARTS = (r"prompt_encoder\.", r"mask_decoder\.", r"shared_image_embedding\.")
LAYOUTS = ("true", "upstream")


def upstream_layout(neck: Tensor) -> Tensor:
    """The released order of the same numbers: (M, C, H, W) to (M, 4 * W, side, side), side = sqrt(C * H) / 2.

    The map is flattened as if its channels came last, C * H tokens of W channels, laid on a square in that order, and
    each 2 x 2 block is gathered into channels. At 1024 px that happens to give (M, 256, 64, 64) again.
    """
    tokens = neck.flatten(1, 2)  # (M, C * H, W)
    side = int(tokens.shape[1] ** 0.5)
    return F.pixel_unshuffle(tokens.transpose(1, 2).unflatten(2, (side, side)), 2)


class Sam(FrozenTeacher):
    defaults = Defaults(
        paths=("checkpoints/sam/sam_vit_l", "facebook/sam-vit-large"),
        size=1024,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        licence="Apache-2.0",
        released={"layout": "upstream"},
    )
    options: ClassVar = {"layout": "true"}
    version = 3
    stem = "vision_encoder.patch_embed.projection"
    net: SamVisionModel

    def load(self, context: BuildContext) -> SamVisionModel:
        if self.choices["layout"] not in LAYOUTS:
            raise self.refuse(f"layout {self.choices['layout']!r} is unknown; use one of {', '.join(LAYOUTS)}")
        accepted = ("sam", "sam_vision_model")
        owner = f"teacher {self.name!r}"
        if (file := original_file(self.path)) is not None:
            net = load_original(file, owner)
        else:
            net = load_pretrained(SamVisionModel, self.path, model_types=accepted, owner=owner, ignore=OTHER_PARTS)
        _fit_to_size(net, self._find_size(), self)
        return net

    def layout(self) -> tuple[tuple[int, int], int]:
        grid, width = square_grid(self.size, self.net.config.patch_size, self), self.net.config.output_channels
        if self.choices["layout"] == "upstream" and width != 4 * grid[0]:
            raise self.refuse(
                "layout=upstream exists where the grid's side is a quarter of the channels, as at 1024 px; here a "
                f"side of {grid[0]} meets {width} channels. Use the released size, or leave out layout=upstream"
            )
        return grid, width

    def encode(self, pixels: Tensor) -> TeacherFeatures:
        neck = self.net(pixels).last_hidden_state  # (M, 256, H, W)
        if self.choices["layout"] == "upstream":
            neck = upstream_layout(neck)
        return TeacherFeatures(neck.flatten(2).transpose(1, 2), self.grid)


def _fit_to_size(net: SamVisionModel, size: int, owner: FrozenTeacher) -> None:
    """Let the encoder take pictures of another side: its position embedding is resized, relative ones adapt alone."""
    encoder = net.vision_encoder
    if size == net.config.image_size:
        return
    side, _ = square_grid(size, net.config.patch_size, owner)
    if encoder.pos_embed is not None:
        stored = encoder.pos_embed.permute(0, 3, 1, 2)
        resized = F.interpolate(stored, (side, side), mode="bicubic").permute(0, 2, 3, 1)
        encoder.pos_embed = nn.Parameter(resized.contiguous(), requires_grad=False)
    encoder.patch_embed.image_size = (size, size)


TEACHER = Sam
