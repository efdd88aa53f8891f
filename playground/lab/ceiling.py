"""How much there is to gain: a language model that reads CLIP and every teacher, the multi-encoder way."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.move_kd.grids import to_grid, unshuffle, unshuffle_factor
from llava.model.multimodal_encoder.move_kd.teachers.base import FrozenTeacher
from llava.model.multimodal_encoder.move_kd.types import StudentFeatures


class TeachersTower(CLIPVisionTower):
    """CLIP's tokens with each teacher's for the same place joined to them, channel by channel; nothing of it learns.

    It is given pictures of the teachers' size, `side`; CLIP sees them reduced to its own.
    """

    teachers: ClassVar[Mapping[str, FrozenTeacher]] = {}
    side: ClassVar[int] = 0

    def _processor(self) -> Any:
        processor = super()._processor()
        processor.size = {"shortest_edge": self.side}
        processor.crop_size = {"height": self.side, "width": self.side}
        return processor

    @torch.no_grad()
    def encode(self, images: Tensor, with_cls_attention: bool = False) -> StudentFeatures:
        size = (self.image_size, self.image_size)
        clip = super().encode(F.interpolate(images, size, mode="bicubic", antialias=True))
        processor = self.image_processor
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
        pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        features = torch.cat(
            [clip.features, *(self.seen(teacher, pixels) for teacher in self.teachers.values())], dim=-1
        )
        return StudentFeatures(features=features, patches=features)

    def seen(self, teacher: FrozenTeacher, pixels: Tensor) -> Tensor:
        """(T, N, f * f * D) standardized per picture and token, so that no teacher drowns the others."""
        answer, factor = teacher(pixels), self.factor(teacher)
        side = factor * self.num_patches_per_side
        stacked = unshuffle(to_grid(answer.patches, answer.grid, (side, side)), (side, side), factor)
        return F.layer_norm(stacked.float(), stacked.shape[-1:])

    def factor(self, teacher: FrozenTeacher) -> int:
        own = (self.num_patches_per_side, self.num_patches_per_side)
        return unshuffle_factor(teacher.grid, own)

    @property
    def hidden_size(self) -> int:
        return super().hidden_size + sum(t.width * self.factor(t) ** 2 for t in self.teachers.values())
