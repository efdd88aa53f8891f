"""How one teacher and the student are laid side by side: each alignment makes a Pair on the student's grid.

By `DistillConfig.heads`: a head on the student, of two layers or linear, predicts the teacher (the target is fixed), an
adapter maps the teacher to the student (as published, the target is trained), or the teacher is only resized. The
anchor, being what the student starts from, is compared as it is. Legend: M images, N tokens, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava.model.multimodal_encoder.move_kd.config import DistillConfig
from llava.model.multimodal_encoder.move_kd.grids import to_grid, unshuffle, unshuffle_factor
from llava.model.multimodal_encoder.move_kd.statistics import ChannelStatistics
from llava.model.multimodal_encoder.move_kd.types import Pair, TeacherFeatures

PUBLISHED_LAYERS = {"channels": 1, "tokens": 2}


class HasShape(Protocol):
    """What an alignment must know of a teacher or of the student: (H, W) of its tokens and their width."""

    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def width(self) -> int: ...


@dataclass(frozen=True)
class Shape:
    grid: tuple[int, int]
    width: int

    @classmethod
    def of(cls, owner: HasShape) -> "Shape":
        height, width = owner.grid
        return cls((height, width), owner.width)

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]


class Alignment(nn.Module):
    """Base: `statistics` standardizes the teacher's channels, or is None where features are taken as they are."""

    def __init__(self, teacher: Shape, student: Shape, config: DistillConfig) -> None:
        super().__init__()
        self.teacher = teacher
        self.student = student
        self.statistics = ChannelStatistics(teacher.width, config.statistics_steps) if config.standardize else None

    def standardize(self, tokens: Tensor) -> Tensor:
        return tokens.float() if self.statistics is None else self.statistics(tokens)

    def forward(self, patches: Tensor, features: TeacherFeatures) -> Pair:
        """patches (M, N, D) of the student's tiles, and the teacher's features of the same images."""
        raise NotImplementedError


class SameSpace(Alignment):
    """Student and teacher have one grid and one width: no parameter, both seen through the teacher's statistics."""

    def forward(self, patches: Tensor, features: TeacherFeatures) -> Pair:
        return Pair(self.standardize(patches), self.standardize(features.patches))


class Hidden(nn.Linear):
    def forward(self, tokens: Tensor) -> Tensor:
        return F.gelu(super().forward(tokens))


class StudentHead(Alignment):
    """LayerNorm and a two-layer MLP predict the teacher's tokens, those of a finer grid stacked per student token."""

    def __init__(self, teacher: Shape, student: Shape, config: DistillConfig) -> None:
        super().__init__(teacher, student, config)
        self.factor = unshuffle_factor(teacher.grid, student.grid) if config.grid == "unshuffle" else 1
        self.norm = nn.LayerNorm(student.width)
        self.hidden = self.hidden_layer(student.width)
        self.output = nn.Linear(student.width, self.factor**2 * teacher.width)

    def hidden_layer(self, width: int) -> nn.Module:
        return Hidden(width, width)

    def forward(self, patches: Tensor, features: TeacherFeatures) -> Pair:
        hidden = self.hidden(self.norm(patches.to(self.norm.weight.dtype)))
        return Pair(self.output(hidden).float(), self.target(features))

    @torch.no_grad()
    def target(self, features: TeacherFeatures) -> Tensor:
        height, width = self.student.grid
        finer = (height * self.factor, width * self.factor)
        return unshuffle(self.standardize(to_grid(features.patches, features.grid, finer)), finer, self.factor)


class LinearHead(StudentHead):
    """LayerNorm and one linear layer: what it predicts is there for the projector to read without a detour."""

    def hidden_layer(self, width: int) -> nn.Module:
        return nn.Identity()


class TeacherAdapter(Alignment):
    """The published adapter: a linear map over channels, an exact GELU, a linear map over positions."""

    def __init__(self, teacher: Shape, student: Shape, config: DistillConfig) -> None:
        super().__init__(teacher, student, config)
        self.channels = nn.Linear(teacher.width, student.width)
        self.tokens = nn.Linear(teacher.tokens, student.tokens)

    def forward(self, patches: Tensor, features: TeacherFeatures) -> Pair:
        tokens = features.patches if self.statistics is None else self.standardize(features.patches)
        mapped = self.channels(tokens.to(self.channels.weight.dtype)).transpose(1, 2)  # (M, D, N_t)
        return Pair(patches.float(), self.tokens(F.gelu(mapped)).transpose(1, 2).float())


class Interpolated(Alignment):
    """No parameter: tokens resized to the student's grid, then channels resized to its width."""

    def forward(self, patches: Tensor, features: TeacherFeatures) -> Pair:
        tokens = self.standardize(to_grid(features.patches, features.grid, self.student.grid))
        if self.teacher.width != self.student.width:
            tokens = F.interpolate(tokens, self.student.width, mode="linear", align_corners=False)
        return Pair(patches.float(), tokens)


ALIGNMENTS: Mapping[str, type[Alignment]] = {
    "student": StudentHead,
    "linear": LinearHead,
    "teacher": TeacherAdapter,
    "interpolate": Interpolated,
}


def build_alignments(teachers: Mapping[str, Shape], student: Shape, config: DistillConfig) -> nn.ModuleDict:
    """One alignment per teacher that is a target, by its name."""
    alignments = nn.ModuleDict()
    for name, shape in teachers.items():
        kind = SameSpace if name == config.anchor and shape == student else ALIGNMENTS[config.heads]
        alignments[name] = kind(shape, student, config)
    return alignments


def to_published_adapters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`eva.channels.weight` to `eva_adapter_1.weight`, the names of encoder_adapter.bin. Heads and statistics, which
    published files do not know, keep our names under `adapters.`."""
    renamed = {}
    for name, tensor in state.items():
        teacher, _, rest = name.partition(".")
        layer, _, kind = rest.partition(".")
        published = layer in PUBLISHED_LAYERS
        renamed[f"{teacher}_adapter_{PUBLISHED_LAYERS[layer]}.{kind}" if published else f"adapters.{name}"] = tensor
    return renamed


def from_published_adapters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_published_adapters`. Raises ValueError for a name of neither kind."""
    layers = {str(number): layer for layer, number in PUBLISHED_LAYERS.items()}
    renamed = {}
    for name, tensor in state.items():
        teacher, found, rest = name.rpartition("_adapter_")
        number, _, kind = rest.partition(".")
        if name.startswith("adapters."):
            renamed[name.removeprefix("adapters.")] = tensor
        elif found and number in layers:
            renamed[f"{teacher}.{layers[number]}.{kind}"] = tensor
        else:
            raise ValueError(f"{name!r} is no tensor of an encoder adapter (like 'eva_adapter_1.weight').")
    return renamed
