"""A teacher that does not look: it knows, of every picture of the run, what each patch shows.

Distilling from it is training on the teachers' own labels, so what a teacher adds beyond them can be told. Its file is
written by `write_labels`; a picture is found there by its content.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from llava.model.multimodal_encoder.move_kd.teachers._weights import find_file, read_checkpoint
from llava.model.multimodal_encoder.move_kd.teachers.base import (
    HALF_MEAN,
    HALF_STD,
    BuildContext,
    Defaults,
    FrozenTeacher,
)
from llava.model.multimodal_encoder.move_kd.types import TeacherFeatures, View
from llava.train.views import content_digest

FILE = "truth.safetensors"


def write_labels(folder: Path, pictures: Sequence[Path], labels: dict[str, Tensor]) -> None:
    """labels: (S, P) class of each patch by what it tells, in the order of `pictures`."""
    folder.mkdir(parents=True, exist_ok=True)
    digests = torch.tensor([list(bytes.fromhex(content_digest(picture.read_bytes()))) for picture in pictures])
    save_file({"digests": digests.to(torch.uint8), **{k: v.to(torch.uint8) for k, v in labels.items()}}, folder / FILE)


@dataclass(frozen=True)
class TruthSource:
    """Numbers of pictures in the table; -1 stands for no picture."""

    numbers: dict[str, int]

    @property
    def key(self) -> str:
        return "truth"

    def prepare(self, view: View) -> Tensor:
        digest = view.key.partition("#")[0]
        if digest not in self.numbers:
            raise ValueError(f"the truth about {view.key} is not known: it is no picture of this world")
        return torch.tensor(self.numbers[digest])

    def blank(self) -> Tensor:
        return torch.tensor(-1)


class Truth(FrozenTeacher):
    defaults = Defaults(paths=("truth",), size=96, mean=HALF_MEAN, std=HALF_STD, licence="none")
    net: nn.Module

    def load(self, context: BuildContext) -> nn.Module:
        owner = f"teacher {self.name!r}"
        tensors = dict(read_checkpoint(find_file(self.path, (FILE,), owner), owner))
        digests = tensors.pop("digests").tolist()
        self.numbers = {bytes(digest).hex(): number for number, digest in enumerate(digests)}
        self.classes = {name: int(values.max()) + 1 for name, values in tensors.items()}
        table = nn.Module()
        for name, values in tensors.items():
            table.register_buffer(name, values)
        return table

    def adopt(self, there: Mapping[str, Any]) -> None:
        super().adopt(there)
        self.numbers = {}  # the source is asked for its key alone

    def make_source(self) -> Any:
        return TruthSource(self.numbers)

    def layout(self) -> tuple[tuple[int, int], int]:
        patches = next(self.net.buffers()).shape[1]
        side = round(patches**0.5)
        return (side, side), sum(self.classes.values())

    @torch.no_grad()
    def forward(self, prepared: Tensor) -> TeacherFeatures:
        """prepared: (M,) numbers of pictures. Classes as zeros and ones, those of all labels side by side."""
        known = (prepared >= 0).view(-1, 1, 1)
        rows = {name: self.net.get_buffer(name)[prepared.clamp_min(0)].long() for name in self.classes}
        shown = torch.cat([F.one_hot(rows[name], count) for name, count in self.classes.items()], dim=-1)
        return TeacherFeatures((shown * known).to(self.dtype), self.grid)


TEACHER = Truth
