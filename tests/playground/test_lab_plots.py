from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava.model.multimodal_encoder.move_kd.metrics import routing_metrics
from llava.model.multimodal_encoder.move_kd.types import Routing
from playground.lab.plots import accuracy_by_kind, band, curve_ends, expert_shares
from playground.lab.report import Layout, write_report
from playground.lab.results import Row
from tests.playground.lab_rows import PRIORS, Arm, row

ARMS = {"plain": Arm("LLaVA"), "release": Arm("as released", "plain"), "ceiling": Arm("reads the teachers", "plain")}
LAYOUT = Layout(
    arms=ARMS,
    tables={"Main": ("plain", "release", "ceiling")},
    references={},
    baseline="plain",
    ceiling="ceiling",
    ladder=("plain", "release"),
    paper_steps={"release": 1.5},
    compared=("release", "plain", "ceiling"),
    drawn=("plain", "release"),
)


def distilled(arm: str, seed: int, visual: float) -> Row:
    steps = range(10, 60, 10)
    falling = {name: [(step, seed + 30 / step) for step in steps] for name in ("lm", "stage1/lm", "residual/sam")}
    shares = ((0, 0.2), (1, 0.7), (2, 0.1))
    return row(arm, seed, visual, curves=falling | {f"expert_load/0/{e}": [(s, v) for s in steps] for e, v in shares})


def test_a_band_covers_the_steps_that_all_seeds_logged() -> None:
    rows = [
        row("plain", 0, curves={"lm": [(10, 3.0), (20, 2.0), (30, 1.0)]}),
        row("plain", 1, curves={"lm": [(20, 4.0), (30, 2.0)]}),
        row("release", 0, curves={"lm": [(20, 9.0)]}),
    ]
    assert band(rows, "plain", "lm") == ([20, 30], [3.0, 1.5], [2.0, 1.0], [4.0, 2.0])
    assert band(rows, "plain", "residual/sam") is None


def test_expert_shares_are_of_the_last_logs_and_sorted_in_each_layer() -> None:
    early = [(step, 1.0) for step in range(5)]
    late = range(5, 10)
    curves = {
        "expert_load/1/0": early + [(step, 0.25) for step in late],
        "expert_load/1/1": early + [(step, 0.75) for step in late],
        "expert_load/0/0": [(9, 0.5)],
        "expert_load/0/1": [(9, 0.5)],
    }
    assert expert_shares(row("release", 0, curves=curves)) == [[0.5, 0.5], [0.75, 0.25]]
    assert expert_shares(row("plain", 0)) == []


def test_the_names_of_the_training_log_are_those_that_are_drawn() -> None:
    probs = torch.tensor([[[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]])
    logged = routing_metrics([Routing(probs, probs.argmax(-1))], torch.ones(1))
    one = row("release", 0, curves={name: [(10, float(value))] for name, value in logged.items()})
    assert expert_shares(one) == [pytest.approx([2 / 3, 1 / 3])]
    assert curve_ends([one], ("release",), "routing_entropy/") == ["0"]


def test_a_report_has_every_table_and_every_picture(tmp_path: Path) -> None:
    rows = [distilled(arm, seed, score + seed) for arm, score in (("release", 60), ("ceiling", 80)) for seed in (0, 1)]
    rows += [row("plain", seed, 50) for seed in (0, 1)]
    page = write_report(rows, tmp_path / "report", LAYOUT, PRIORS)
    text = page.read_text()
    titles = ["# 6 runs in world w0", "## Main", "## By kind", "## Share of the gap", "## The paper's ladder"]
    assert [text.index(title) for title in titles] == sorted(text.index(title) for title in titles)
    assert "Versions: torch 2.9, source not recorded (6 runs)" in text
    pictures = {path.stem: path for path in page.parent.glob("*.png")}
    assert set(pictures) == {"accuracy_by_kind", "differences", "learning_curves", "residuals", "expert_use"}
    for path in pictures.values():
        with Image.open(path) as picture:
            assert picture.width >= 600
            assert np.asarray(picture).std() > 1


def test_a_report_of_arms_without_distillation_has_no_empty_pictures(tmp_path: Path) -> None:
    page = write_report([row("plain", 0)], tmp_path, LAYOUT, PRIORS)
    assert [path.name for path in page.parent.glob("*.png")] == ["accuracy_by_kind.png"]
    assert "Share of the gap recovered" not in page.read_text()


def test_a_report_is_about_one_world(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one world, these rows are of 2"):
        write_report([row("plain", 0), row("plain", 0, world="w1")], tmp_path, LAYOUT, PRIORS)


def test_more_arms_than_colors_are_refused(tmp_path: Path) -> None:
    names = [f"arm{place}" for place in range(8)]
    with pytest.raises(ValueError, match="8 things in one picture, but only 7"):
        accuracy_by_kind([], names, {name: Arm(name) for name in names}, PRIORS, tmp_path / "x.png")
