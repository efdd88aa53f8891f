"""DINOv2, with or without registers: final normed tokens; class and register tokens are not among the patches."""

from torch import Tensor
from transformers import Dinov2Model, Dinov2WithRegistersModel

from llava.model.multimodal_encoder.move_kd.teachers._weights import check_model_type, load_pretrained
from llava.model.multimodal_encoder.move_kd.teachers.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BuildContext,
    Defaults,
    FrozenTeacher,
    square_grid,
)
from llava.model.multimodal_encoder.move_kd.types import TeacherFeatures

CLASSES = {"dinov2_with_registers": Dinov2WithRegistersModel, "dinov2": Dinov2Model}


class DinoV2(FrozenTeacher):
    defaults = Defaults(
        paths=("facebook/dinov2-with-registers-large",),
        size=518,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        licence="Apache-2.0",
    )
    net: Dinov2Model | Dinov2WithRegistersModel

    def load(self, context: BuildContext) -> Dinov2Model | Dinov2WithRegistersModel:
        owner = f"teacher {self.name!r}"
        model_type = check_model_type(self.path, tuple(CLASSES), owner)
        self.prefix = 1  # class token and registers come first
        net = load_pretrained(
            CLASSES[model_type], self.path, model_types=tuple(CLASSES), owner=owner, ignore=(r"classifier\.",)
        )
        if model_type == "dinov2_with_registers":
            self.prefix += net.config.num_register_tokens
        return net

    def layout(self) -> tuple[tuple[int, int], int]:
        return square_grid(self.size, self.net.config.patch_size, self), self.net.config.hidden_size

    def encode(self, pixels: Tensor) -> TeacherFeatures:
        tokens = self.net(pixels).last_hidden_state
        return TeacherFeatures(tokens[:, self.prefix :], self.grid, tokens[:, 0])


TEACHER = DinoV2
