"""Tiny teachers in their published formats, once a session, and runs of the real entry point with them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_teachers import CASES, make_case
from tests.train.runs import STAGE_ONE, STAGE_TWO, World, train_tiny

TUNED = {"tune_encoder": True, "tune_encoder_adapter": True}
PRETRAIN = {**STAGE_ONE, **TUNED}
FINETUNE = {**STAGE_TWO, **TUNED, "tune_all": True, "finetune": True}
SETTINGS = {"moe_encoder_lora_rank": 4, "max_steps": 2}


@dataclass(frozen=True)
class Lab:
    """Runs on the tiny world. teachers: a spec for each of tests.tiny_teachers.CASES."""

    world: World
    teachers: dict[str, str]
    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def specs(self, *names: str) -> list[str]:
        """The words for --encoder_teachers; "clip" is the student's own."""
        return ["clip" if name == "clip" else self.teachers[name] for name in names]

    def data(self, name: str) -> Path:
        return self.world.folder / f"{name}.json"

    def pretrain(self, *groups: dict[str, Any], out: str = "pretrain") -> Path:
        return train_tiny(self.world, self.folder / out, self.monkeypatch, PRETRAIN, SETTINGS, *groups)

    def finetune(self, *groups: dict[str, Any], out: str = "finetune") -> Path:
        data = {"data_path": self.data("chats")}
        return train_tiny(self.world, self.folder / out, self.monkeypatch, FINETUNE, SETTINGS, data, *groups)


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    return {name: make_case(name, folder) for name in CASES}


@pytest.fixture
def lab(world: World, teachers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(world, teachers, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def pretrained(world: World, teachers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage 1 writes, with the four teachers of MoVE-KD v1.1 and our recipe."""
    with pytest.MonkeyPatch.context() as patch:
        lab = Lab(world, teachers, tmp_path_factory.mktemp("kd"), patch)
        return lab.pretrain({"encoder_teachers": lab.specs("clip", "sam", "eva", "convnext")})


def rows(folder: Path) -> list[dict[str, Any]]:
    """One per logged step."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [row for row in history if "loss" in row]


def terms(row: dict[str, Any]) -> dict[str, float]:
    """The summands of the loss that a log row names."""
    return {name: value for name, value in row.items() if name in ("lm", "balance") or name.startswith("kd/")}


def taught_by(folder: Path) -> set[str]:
    return {name.removeprefix("kd/") for name in terms(rows(folder)[0]) if name.startswith("kd/")}


def assert_terms_sum_to_the_loss(folder: Path) -> None:
    for row in rows(folder):
        assert sum(terms(row).values()) == pytest.approx(row["loss"], rel=1e-4)
