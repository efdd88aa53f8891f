"""C-RADIO: one encoder distilled from many, as a single strong teacher. It normalizes pictures itself."""

from torch import Tensor
from transformers import RadioModel

from llava.model.multimodal_encoder.move_kd.teachers._weights import load_pretrained
from llava.model.multimodal_encoder.move_kd.teachers.base import (
    BuildContext,
    Defaults,
    FrozenTeacher,
    square_grid,
)
from llava.model.multimodal_encoder.move_kd.types import TeacherFeatures

# Heads onto the teachers that RADIO itself was distilled from.
OTHER_PARTS = (r"radio_model\.(feature_normalizer|inter_feature_normalizer|spectral)", r".*adaptor", r".*teacher_heads")


class Radio(FrozenTeacher):
    defaults = Defaults(
        paths=("nvidia/C-RADIOv4-H",),
        size=512,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        licence="NVIDIA Open Model License (C-RADIO); older RADIO checkpoints are non-commercial",
    )
    net: RadioModel

    def load(self, context: BuildContext) -> RadioModel:
        if self.spec.mean or self.spec.std:
            raise self.refuse("radio normalizes pictures by the constants in its checkpoint; leave out mean and std")
        owner = f"teacher {self.name!r}"
        return load_pretrained(RadioModel, self.path, model_types=("radio",), owner=owner, ignore=OTHER_PARTS)

    def layout(self) -> tuple[tuple[int, int], int]:
        return square_grid(self.size, self.net.config.patch_size, self), self.net.config.hidden_size

    def encode(self, pixels: Tensor) -> TeacherFeatures:
        output = self.net(pixels)
        return TeacherFeatures(output.features, self.grid, output.last_hidden_state[:, 0])


TEACHER = Radio
