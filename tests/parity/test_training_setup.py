"""Trainable parts and optimizer groups for the published flags, against the published entry point.

Differences that are meant (each is stated where it is expected):
- `freeze_mm_mlp_adapter` freezes the projector and nothing else, and `tune_all` does not undo it; there it froze
  the language model too, and `tune_all` undid it.
- `freeze_backbone` freezes the head with the language model; there the head went on training.
- Tower layers that no loss reaches stay frozen (not here: this test leaves them in to compare every name).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from llava.model.multimodal_encoder.move_kd.adapters import Shape, to_published_adapters
from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.multimodal_encoder.move_kd.distiller import Distiller
from llava.model.multimodal_encoder.move_kd.student import unstack_experts
from llava.train.arguments import parse_run
from llava.train.optimizer import parameter_groups
from llava.train.run_config import Run
from llava.train.stages import apply_stage
from llava.train.student import unused_parameters
from tests.parity.vectors import cases
from tests.tiny import tiny_llava

ROWS = [row for case in cases("K_training_setup") for row in case.meta["rows"]]
FLAGS = """--model_name_or_path m --data_path d --vision_tower v --learning_rate 1e-3 --weight_decay 0.1
    --encoder_teachers clip eva convnext --kd_recipe release"""
TEACHERS = {"clip": Shape((4, 4), 32), "eva": Shape((4, 4), 24), "convnext": Shape((2, 2), 40)}


def _run(flags: Mapping[str, Any], folder: Path) -> Run:
    given = [word for name, value in {"moe_encoder": True, **flags}.items() for word in (f"--{name}", str(value))]
    return parse_run([*FLAGS.split(), "--output_dir", str(folder), *given])


def _distiller(run: Run, folder: Path) -> Distiller:
    moe = run.model.vision.moe if run.model.vision is not None else None
    extra = {} if moe is None else {"moe": MoLEConfig.from_dict(dict(moe, moe_encoder_num_experts=3)).to_dict()}
    assert run.distill is not None
    return Distiller(tiny_llava(folder, **extra), TEACHERS, run.distill.config)


def _published(name: str, parameter: nn.Parameter) -> list[str]:
    """One parameter's name or names (experts are stacked here) in the published model."""
    if name.startswith("adapters."):
        return list(to_published_adapters({name.removeprefix("adapters."): parameter.detach()}))
    return list(unstack_experts({name.removeprefix("student."): parameter.detach()}))


def _component(name: str) -> str:
    if "_adapter_" in name:
        return "teacher_adapters"
    if "mm_projector" in name:
        return "projector"
    if "vision_tower" not in name:
        return "llm"
    if ".router." in name:
        return "router"
    return "moe_experts" if ".moe_" in name else "vision_base"


def _share(trained: int, total: int) -> str:
    return "all" if trained == total else "none" if not trained else f"{trained}/{total}"


def _expected(row: Mapping[str, Any]) -> dict[str, str]:
    """The row's components, with the differences that are meant."""
    expected = dict(row["trainable"])
    flags = row["flags"]
    if flags.get("freeze_mm_mlp_adapter"):
        expected["projector"] = "none"
        expected["llm"] = "all"
    if flags.get("freeze_backbone") and not flags.get("tune_all"):
        expected["llm"] = "none"
    return expected


def _differs(row: Mapping[str, Any]) -> bool:
    return _expected(row) != row["trainable"]


@pytest.fixture
def prepared(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Run, Distiller]:
    run = _run(request.param["flags"], tmp_path)
    distiller = _distiller(run, tmp_path)
    apply_stage(distiller.parts(), run.stage)
    return run, distiller


@pytest.mark.parametrize(("prepared", "row"), [(row, row) for row in ROWS], indirect=["prepared"])
def test_the_published_flags_train_the_published_components(
    prepared: tuple[Run, Distiller], row: dict[str, Any]
) -> None:
    counts: dict[str, list[int]] = {}
    for name, parameter in prepared[1].named_parameters():
        for published in _published(name, parameter):
            count = counts.setdefault(_component(published), [0, 0])
            count[0] += parameter.requires_grad
            count[1] += 1
    assert sum(total for _, total in counts.values()) == row["n_all"]
    found = {component: _share(*count) for component, count in counts.items()}
    assert found == {component: share for component, share in _expected(row).items() if component in found}
    absent = _expected(row).keys() - found.keys()
    assert all(row["trainable"][component] == "none" for component in absent)
    if not _differs(row):
        assert sum(trained for trained, _ in counts.values()) == row["n_trainable"]


SAME = [row for row in ROWS if not _differs(row)]


@pytest.mark.parametrize(("prepared", "row"), [(row, row) for row in SAME], indirect=["prepared"])
def test_optimizer_groups_are_the_published_ones(prepared: tuple[Run, Distiller], row: dict[str, Any]) -> None:
    run, distiller = prepared
    names = {id(parameter): _published(name, parameter) for name, parameter in distiller.named_parameters()}
    groups = parameter_groups(distiller, distiller.parts(), run.learning_rates, run.hf.learning_rate, 0.1)
    found = {
        (group["lr"], group["weight_decay"]): sorted(name for value in group["params"] for name in names[id(value)])
        for group in groups
    }
    expected = {(group["lr"], group["weight_decay"]): group for group in row["optimizer_groups"]}
    assert {key: len(listed) for key, listed in found.items()} == {key: group["n"] for key, group in expected.items()}
    for key, group in expected.items():
        if "names" in group:
            assert found[key] == sorted(group["names"])


def test_published_switches_that_were_undone_or_did_more_do_what_they_are_called(tmp_path: Path) -> None:
    assert _run({"freeze_mm_mlp_adapter": True, "tune_all": True}, tmp_path).stage.trainable == {
        "mole",
        "vision_tower",
        "language_model",
        "adapters",
    }
    assert "language_model" in _run({"freeze_mm_mlp_adapter": True}, tmp_path).stage.trainable
    assert "language_model" not in _run({"freeze_backbone": True}, tmp_path).stage.trainable
    assert "adapters" not in _run({"tune_encoder_adapter": False}, tmp_path).stage.trainable


def test_experts_routers_and_adapters_can_have_learning_rates_of_their_own(tmp_path: Path) -> None:
    run = _run({"tune_mm_mlp_adapter": True, "tune_encoder": True, "mole_lr": 5e-4, "adapter_lr": 2e-3}, tmp_path)
    distiller = _distiller(run, tmp_path)
    parts = distiller.parts()
    apply_stage(parts, run.stage)
    rates = {id(value): group["lr"] for group in parameter_groups(
        distiller, parts, run.learning_rates, run.hf.learning_rate, 0.1
    ) for value in group["params"]}  # fmt: skip
    expected = {"mole": 5e-4, "adapters": 2e-3, "projector": 1e-3}
    for part, rate in expected.items():
        assert {rates[id(value)] for value in parts[part].values()} == {rate}


@pytest.mark.parametrize("balances", [True, False])
def test_only_what_no_loss_reaches_is_left_out(tmp_path: Path, balances: bool) -> None:
    """The third of three layers is behind the one that is read; its router is heard by the balance term alone."""
    run = replace(_run({"tune_all": True}, tmp_path))
    distiller = _distiller(run, tmp_path)
    unused = unused_parameters(distiller, balances)
    layer = "student.model.vision_tower.vision_tower.vision_model.encoder.layers.2."
    assert any(name.endswith("post_layernorm.weight") for name in unused)
    assert (f"{layer}mlp.router.weight" in unused) is not balances
    assert (f"{layer}self_attn.q_proj.weight" in unused) is not balances
    assert f"{layer}mlp.moe_up.expand_weight" in unused
    before = [name for name in unused if "vision_tower" in name and ".layers.1." in name]
    assert all(".mlp.router." in name for name in before)  # of the released gate, which only the balance teaches
    assert bool(before) is not balances
