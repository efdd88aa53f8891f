"""The page at the end of a run: from the trainer, from a run's directory, and from runs that lack something."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llava.model.checkpoint_lora import read_lora
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.train.arguments import parse_run
from llava.train.data_config import DataConfig
from llava.train.report import FOLDER, load_tower, look_at_files, main, pick_items, write_report
from llava.train.report_figures import curve, is_term, layer_table, panels_of
from llava.train.report_pictures import Look, chosen_layers, draw_teachers
from tests.train.distillation.conftest import Lab
from tests.train.runs import command_line

ALL_FIGURES = {"report.md", "curves.png", "experts.png", "encoder.png", "teachers.png"}


@pytest.fixture(scope="module")
def reported(world: Any, teachers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 1 with a report."""
    with pytest.MonkeyPatch.context() as patch:
        lab = Lab(world, teachers, tmp_path_factory.mktemp("report"), patch)
        return lab.pretrain({"encoder_teachers": lab.specs("clip", "eva"), "report": True})


def figures_in(run: Path) -> set[str]:
    return {path.name for path in (run / FOLDER).iterdir()}


def test_a_distillation_ends_with_a_page_that_links_every_figure(reported: Path) -> None:
    assert figures_in(reported) == ALL_FIGURES
    page = (reported / FOLDER / "report.md").read_text()
    for name in ALL_FIGURES - {"report.md"}:
        assert f"({name})" in page
        with Image.open(reported / FOLDER / name) as figure:
            assert min(figure.size) > 100
    assert "| kd/eva |" in page
    assert "expert_load" not in page


def test_a_frozen_tower_is_looked_at_in_the_precision_of_the_run(lab: Lab) -> None:
    out = lab.pretrain({"encoder_teachers": lab.specs("clip", "eva"), "report": True, "bf16": True, "max_steps": 1})
    assert figures_in(out) == ALL_FIGURES


def test_curves_are_drawn_where_pictures_cannot_be(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(trainer: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("llava.train.report.look_at_data", fail)
    out = lab.pretrain({"encoder_teachers": ["clip"], "report": True, "max_steps": 1})
    assert figures_in(out) == {"report.md", "curves.png", "experts.png"}
    assert "the report has no pictures: RuntimeError('no memory')" in caplog.text


def test_by_hand_the_page_shows_any_picture_to_the_trained_tower(
    reported: Path, world: Any, teachers: dict[str, str]
) -> None:
    picture = str(world.folder / "images" / "0.png")
    main([str(reported), "--image", picture, picture, "--teachers", teachers["dinov2"]])
    assert figures_in(reported) == ALL_FIGURES


def test_the_tower_comes_back_with_its_trained_experts(reported: Path) -> None:
    tower = load_tower(reported)
    saved = torch.load(reported / "mole_encoder.bin", weights_only=True)
    name = "vision_tower.vision_model.encoder.layers.0.mlp.router.weight"
    torch.testing.assert_close(dict(tower.named_parameters())[name], saved[f"model.vision_tower.{name}"].float())


def test_experts_beside_an_adapter_come_back_too(lab: Lab) -> None:
    lora = {"lora_enable": True, "lora_r": 4, "tune_all": False, "finetune": False}
    out = lab.finetune({"encoder_teachers": ["clip"]}, lora, {"max_steps": 1})
    tower = load_tower(out)
    name = "vision_tower.vision_model.encoder.layers.0.mlp.router.weight"
    saved = read_lora(out).non_lora[f"model.vision_tower.{name}"].float()
    torch.testing.assert_close(dict(tower.named_parameters())[name], saved)


LAYOUTS: list[dict[str, Any]] = [
    {"image_aspect_ratio": None},
    {"image_aspect_ratio": "pad"},
    {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[28, 56], [56, 28]]},
    {"image_aspect_ratio": "highres", "image_grid_pinpoints": "28,56"},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout["image_aspect_ratio"])
def test_by_hand_teachers_are_shown_what_the_student_sees(layout: dict[str, Any], world: Any) -> None:
    """The teacher is the student's own encoder."""
    tower = build_vision_tower(SimpleNamespace(mm_vision_tower=str(world.folder / "clip-tiny")))
    [look] = look_at_files(tower, DataConfig(**layout), [world.folder / "images" / "0.png"], ["clip"])
    torch.testing.assert_close(look.teachers["clip"][0], look.patches)


def test_a_directory_without_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert f"error: {tmp_path} holds no trainer_state.json; pass the --output_dir" in capsys.readouterr().err


def test_a_report_that_fails_does_not_fail_the_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError("no font")

    monkeypatch.setattr("llava.train.report.figures.draw_curves", broken)
    out = lab.pretrain({"encoder_teachers": lab.specs("clip"), "report": True, "max_steps": 1})
    assert (out / "mole_encoder.bin").exists()


def test_a_page_is_written_with_teachers_or_when_asked_for(world: Any, tmp_path: Path) -> None:
    def wants_page(**flags: Any) -> bool:
        data = {"data_path": world.folder / "captions.json", "output_dir": tmp_path}
        return parse_run(command_line(world.model_flags, data, flags)).report

    assert not wants_page()
    assert wants_page(report=True)
    assert wants_page(encoder_teachers=["clip"])
    assert not wants_page(encoder_teachers=["clip"], report=False)
    assert not wants_page(encoder_teachers=["clip"], kd=False)


def test_the_page_of_a_plain_run_has_neither_experts_nor_teachers(lab: Lab) -> None:
    out = lab.pretrain({"tune_encoder": False, "max_steps": 1, "report": True})
    assert figures_in(out) == {"report.md", "curves.png", "encoder.png"}


def test_terms_of_unknown_objectives_have_a_panel_and_metrics_are_no_terms() -> None:
    history = [{"step": step, "loss": 2.0, "lm": 1.0, "huber/eva": 1.0, "cka/eva": 0.5, "expert_load/0/1": 1.0,
                "eval_loss": 3.0, "grad_norm": float("nan")} for step in (1, 2)]  # fmt: skip
    panels = panels_of(history)
    assert set(panels["loss"]) == {"all terms", "language model", "validation"}
    assert set(panels["huber, as it is in the loss"]) == {"eva"}
    assert not is_term("cka/eva")
    assert not is_term("eval_kd/eva")
    assert "gradient norm" not in panels
    assert curve(history, "lm") == ([1.0, 2.0], [1.0, 1.0])


def test_values_per_layer_become_one_table() -> None:
    history = [{"step": s, "expert_load/0/0": 0.25, "expert_load/0/1": 0.75, "expert_load/1/0": 1.0,
                "expert_load/1/1": 0.0} for s in (5, 10)]  # fmt: skip
    steps, loads = layer_table(history, "expert_load")
    assert steps == [5.0, 10.0]
    np.testing.assert_array_equal(loads[0], [[0.25, 0.75], [1.0, 0.0]])
    assert chosen_layers(23) == [0, 7, 15, 22]
    assert chosen_layers(2) == [0, 1]


def test_a_page_needs_neither_log_nor_class_token_nor_experts(tmp_path: Path) -> None:
    look = Look(Image.new("RGB", (28, 28)), (4, 4), torch.randn(16, 8), None)
    page = write_report([], [look], tmp_path)
    assert "no log" in page.read_text()
    assert figures_in(tmp_path) == {"report.md", "encoder.png"}


def test_many_teachers_are_drawn_in_bands(tmp_path: Path) -> None:
    features = (torch.randn(16, 8), torch.randn(16, 8), (4, 4))
    sizes = {}
    for count in (4, 10):
        teachers = {f"teacher{index}": features for index in range(count)}
        look = Look(Image.new("RGB", (28, 28)), (4, 4), torch.randn(16, 8), None, teachers=teachers)
        draw_teachers([look], tmp_path / "teachers.png")
        sizes[count] = Image.open(tmp_path / "teachers.png").size
    assert sizes[10][0] < 1.1 * sizes[4][0]
    assert sizes[10][1] > 2.5 * sizes[4][1]


def test_pictures_are_spread_over_the_data_and_blanks_left_out() -> None:
    items = [{"blank": index % 2 == 0, "index": index} for index in range(100)]
    picked = [item["index"] for item in pick_items(items)]
    assert len(picked) == 4
    assert all(index % 2 for index in picked)
    assert max(picked) - min(picked) > 40
    assert json.dumps(picked) == json.dumps([item["index"] for item in pick_items(items)])
