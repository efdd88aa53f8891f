"""DINOv3 ViT: final normed tokens; class and register tokens are not among the patches. Rotary, so any size fits."""

from torch import Tensor
from transformers import DINOv3ViTModel

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


class DinoV3(FrozenTeacher):
    defaults = Defaults(
        paths=("facebook/dinov3-vitl16-pretrain-lvd1689m",),
        size=512,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        licence="DINOv3 License (terms extend to what is made with it)",
    )
    net: DINOv3ViTModel

    def load(self, context: BuildContext) -> DINOv3ViTModel:
        return load_pretrained(DINOv3ViTModel, self.path, model_types=("dinov3_vit",), owner=f"teacher {self.name!r}")

    def layout(self) -> tuple[tuple[int, int], int]:
        return square_grid(self.size, self.net.config.patch_size, self), self.net.config.hidden_size

    def encode(self, pixels: Tensor) -> TeacherFeatures:
        tokens = self.net(pixels).last_hidden_state
        return TeacherFeatures(tokens[:, 1 + self.net.config.num_register_tokens :], self.grid, tokens[:, 0])


TEACHER = DinoV3
