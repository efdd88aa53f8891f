"""A teacher whose pictures are no single square: a dict of tensors goes from workers to network, and to disk."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from llava.model.multimodal_encoder.move_kd.cache import describe, reduce_features
from llava.model.multimodal_encoder.move_kd.cache_writer import CacheWriter
from llava.model.multimodal_encoder.move_kd.teachers._spec import parse_spec
from llava.model.multimodal_encoder.move_kd.teachers.base import BuildContext, Defaults, FrozenTeacher
from llava.model.multimodal_encoder.move_kd.types import ImageSpec, TeacherFeatures, View, split, stack
from llava.train.check_teachers import examine
from playground.lab.plugins.truth import Truth


@dataclass(frozen=True)
class TwoScales:
    near: ImageSpec
    far: ImageSpec

    @property
    def key(self) -> str:
        return f"{self.near.key}+{self.far.key}"

    def prepare(self, view: View) -> dict[str, Tensor]:
        return {"near": self.near.prepare(view), "far": self.far.prepare(view)}

    def blank(self) -> dict[str, Tensor]:
        return {"near": self.near.blank(), "far": self.far.blank()}


class Twice(FrozenTeacher):
    defaults = Defaults(("nowhere",), 16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "MIT")
    net: nn.Conv2d

    def load(self, context: BuildContext) -> nn.Conv2d:
        return nn.Conv2d(3, 4, 8, 8)

    def layout(self) -> tuple[tuple[int, int], int]:
        return (2, 2), 4

    def make_source(self) -> TwoScales:
        return TwoScales(*(ImageSpec(size, self.mean, self.std) for size in (16, 8)))

    def normalize(self, pixels: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: super(Twice, self).normalize(value) for name, value in pixels.items()}

    def encode(self, pixels: dict[str, Tensor]) -> TeacherFeatures:
        near, far = (self.net(pixels[name]).flatten(2).transpose(1, 2) for name in ("near", "far"))
        return TeacherFeatures(near + far, self.grid)


def views(count: int) -> list[View]:
    return [View(Image.new("RGB", (20, 12), (40 * index, 9, 200)), "pad", f"p{index}") for index in range(count)]


def test_a_dict_of_tensors_is_seen_in_chunks_checked_and_cached(tmp_path: Path) -> None:
    torch.manual_seed(3)
    whole = Twice(parse_spec("twice"))
    shown = stack([whole.source.prepare(view) for view in views(5)])
    expected = whole(shown).patches
    assert expected.shape == (5, 4, 4)
    assert [len(part["far"]) for part in split(shown, 2)] == [2, 2, 1]
    whole.spec = parse_spec("twice:chunk=2")
    torch.testing.assert_close(whole(shown).patches, expected)
    assert examine(whole, torch.device("cpu"), batch_size=3, repeats=1).grid == (2, 2)
    manifest, blank = describe(whole)
    with CacheWriter(tmp_path, manifest, blank) as writer:
        for name, sample in zip("abcde", reduce_features(whole(shown), None), strict=True):
            writer.add(name, sample)
    assert len(writer.known) == 6


def test_what_is_no_tensor_is_refused_where_it_is_collated() -> None:
    with pytest.raises(TypeError, match="tensors or dicts of tensors, got SimpleNamespace"):
        stack([SimpleNamespace()])


@pytest.mark.parametrize("kind", [Twice, Truth])
def test_the_key_of_an_own_source_is_known_without_weights(kind: type[FrozenTeacher]) -> None:
    own = {"source": "16px_student_0-0-0+8px_student_0-0-0" if kind is Twice else "truth"}
    assert kind.vouched(parse_spec("any:digest=01234567"), BuildContext(), own)["source"] == own["source"]
