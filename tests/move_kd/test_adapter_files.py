"""encoder_adapter.bin: published files are read and, for published adapters, written."""

from pathlib import Path

import pytest
import torch

from llava.model.checkpoint import gather_state_dict, load_parts, save_parts, upgrade_state_dict
from llava.model.checkpoint_io import write_safetensors
from llava.model.checkpoint_parts import load_own_adapters, published_adapter_names
from llava.model.multimodal_encoder.move_kd.adapters import Shape
from llava.model.multimodal_encoder.move_kd.config import DistillConfig
from llava.model.multimodal_encoder.move_kd.distiller import Distiller
from tests.move_kd.fakes import FakeStudent, batch, features, teachers, tokens
from tests.parity.vectors import Case, cases

NAMES = ("clip", "eva", "sam")


def adapter_file(case: Case) -> Path:
    return case.path.parent / "pretrain_output" / "encoder_adapter.bin"


def build(recipe: str) -> Distiller:
    return Distiller(FakeStudent(), teachers(*NAMES), DistillConfig.from_recipe(recipe))


@pytest.mark.parametrize("recipe", ["release", "ours"])
def test_adapters_and_statistics_come_back_from_their_file(recipe: str, tmp_path: Path) -> None:
    first, second = build(recipe), build(recipe)
    first(batch(), features(*NAMES), images=tokens())  # the statistics have seen something
    save_parts(tmp_path, adapters={**first.parts()["adapters"], **first.adapter_buffers()})
    written = torch.load(tmp_path / "encoder_adapter.bin", weights_only=True)
    assert ("eva_adapter_1.weight" in written) == (recipe == "release")
    assert load_parts(second, tmp_path) == ["adapters"]
    for name, tensor in first.adapters.state_dict().items():
        assert torch.equal(second.adapters.state_dict()[name], tensor), name


def test_adapters_among_a_models_weights_are_told_by_any_name_that_a_teacher_may_have(tmp_path: Path) -> None:
    named = {"clip": teachers("clip")["clip"], "DINO-v2_b": teachers("eva")["eva"]}
    first, second = (Distiller(FakeStudent(), named, DistillConfig.from_recipe("release")) for _ in range(2))
    state = published_adapter_names(gather_state_dict(first.parts()["adapters"]))
    assert "DINO-v2_b_adapter_1.weight" in state
    assert upgrade_state_dict(state) == {}  # no model has them
    write_safetensors(state, tmp_path)
    assert load_own_adapters(second, tmp_path)
    for name, tensor in first.adapters.state_dict().items():
        assert torch.equal(second.adapters.state_dict()[name], tensor), name


@pytest.mark.parametrize("case", [c for c in cases("H_end_to_end") if adapter_file(c).exists()], ids=str)
def test_the_published_adapter_file_fills_the_released_adapters(case: Case) -> None:
    stored = case.group("weight")
    shapes = {"clip": Shape((3, 3), 32)}
    for name in case.meta["teachers"][1:]:
        tokens_in = stored[f"{name}_adapter_2.weight"].shape[1]
        shapes[name] = Shape((int(tokens_in**0.5),) * 2, stored[f"{name}_adapter_1.weight"].shape[1])
    student = FakeStudent()
    student.hidden_size, student.num_patches_per_side = 32, 3
    distiller = Distiller(student, shapes, DistillConfig.from_recipe("release"))
    file = adapter_file(case)
    assert load_parts(distiller, file) == ["adapters"]
    published = torch.load(file, weights_only=True)
    assert torch.equal(distiller.adapters["eva"].tokens.bias, published["eva_adapter_2.bias"])
