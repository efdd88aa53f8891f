"""What a run says while it trains: who teaches what, how the experts are used, and what the teachers cost."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llava.errors import NonFiniteLoss
from llava.model.multimodal_encoder.move_kd.teachers.eva02 import Eva02
from llava.model.multimodal_encoder.move_kd.types import TeacherFeatures
from llava.train.meter import StepMeter
from llava.train.stopwatch import Stopwatch
from tests.train.distillation.conftest import Lab, assert_terms_sum_to_the_loss, rows

NAMES = ("clip", "eva", "sam")
LAYERS, EXPERTS = 2, 3  # layers that are read, of the tiny tower's three


@pytest.fixture(scope="module")
def trained(world: Any, teachers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    with pytest.MonkeyPatch.context() as patch:
        lab = Lab(world, teachers, folder, patch)
        flags = {"encoder_teachers": lab.specs(*NAMES), "report_to": "tensorboard", "max_steps": 4}
        return lab.finetune(flags, {"data_path": lab.data("captions"), "logging_dir": folder / "board"})


def test_every_teacher_has_a_term_a_weight_and_two_similarities(trained: Path) -> None:
    for row in rows(trained):
        for name in NAMES:
            assert row[f"kd/{name}"] >= 0
            assert row[f"residual/{name}"] >= 0
            assert -1 <= row[f"cosine/{name}"] <= 1 + 1e-5
            assert 0 <= row[f"cka/{name}"] <= 1 + 1e-5
        assert sum(row[f"weight/{name}"] for name in NAMES) == pytest.approx(1.0)
    assert_terms_sum_to_the_loss(trained)


def test_token_weights_and_experts_are_described_per_layer(trained: Path) -> None:
    for row in rows(trained):
        assert 0 < row["token_entropy"] < 2.7726  # log 16
        for layer in range(LAYERS):
            load = [row[f"expert_load/{layer}/{expert}"] for expert in range(EXPERTS)]
            assert sum(load) == pytest.approx(1.0)
            assert 0 <= row[f"routing_entropy/{layer}"] <= 1
        assert f"routing_entropy/{LAYERS}" not in row
        assert row["balance"] > 0


def test_throughput_and_the_teachers_share_are_there(trained: Path) -> None:
    for row in rows(trained):
        assert row["images_per_second"] > 0
        assert 0 < row["teacher_share"] < 1


def test_plain_runs_have_no_teachers_to_time(lab: Lab) -> None:
    out = lab.finetune({"tune_encoder": False, "tune_encoder_adapter": False})
    assert "teacher_share" not in rows(out)[0]


def test_tensorboard_has_what_the_history_has(trained: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(trained.parent / "board"))
    events.Reload()
    logged = {f"train/{name}" for name in rows(trained)[0]} - {"train/step", "train/epoch"}
    assert logged <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/kd/eva")] == [1, 2, 3, 4]


def test_the_console_shows_the_terms_and_not_every_layer(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.finetune({"encoder_teachers": lab.specs(*NAMES), "max_steps": 1})
    printed = capsys.readouterr().out
    assert "'kd/eva'" in printed
    assert "'teacher_share'" in printed
    assert "expert_load" not in printed


def test_a_teacher_that_fails_is_named(lab: Lab) -> None:
    encode, calls = Eva02.encode, []

    def broken(self: Eva02, pixels: torch.Tensor) -> TeacherFeatures:
        calls.append(len(pixels))
        found = encode(self, pixels)
        return found if len(calls) < 3 else found._replace(patches=found.patches * torch.inf)

    lab.monkeypatch.setattr(Eva02, "encode", broken)
    flags = {"encoder_teachers": lab.specs(*NAMES), "kd_standardize": False, "max_steps": 5}
    with pytest.raises(NonFiniteLoss, match=r"^kd/eva not finite .* in samples c\d+, c\d+"):
        lab.finetune(flags, {"data_path": lab.data("captions")})


def test_a_metric_that_could_not_be_measured_does_not_count() -> None:
    meter = StepMeter()
    for value in (1.0, float("nan"), 3.0):
        metrics = {"cosine/eva": torch.tensor(value), "never": torch.tensor(float("nan"))}
        meter.add({"loss": torch.ones(()), "terms": {"lm": torch.ones(())}, "metrics": metrics}, ["a"], 1)
    logs = meter.drain()
    assert logs["cosine/eva"] == 2.0
    assert "never" not in logs
    assert logs["lm"] == 1.0


def test_a_stopwatch_adds_up_what_is_inside_until_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 1.5, 7.0, 7.25])
    monkeypatch.setattr("llava.train.stopwatch.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    watch = Stopwatch()
    for _ in range(2):
        with watch:
            pass
    assert watch.drain() == 0.75
    assert watch.drain() == 0.0


@pytest.mark.gpu
def test_a_stopwatch_counts_the_work_of_the_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    watch = Stopwatch()
    matrix = torch.randn(4096, 4096, device="cuda")
    with watch:
        for _ in range(20):
            matrix = matrix @ matrix * 1e-3
    assert watch.drain() > 1e-4
