"""The student as flags ask for it, from a checkpoint that says otherwise or from less than it takes."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava.mm_utils import process_images
from llava.model.quantization import UNQUANTIZED
from llava.train.arguments import parse_run
from llava.train.build import build_tokenizer
from llava.train.run_config import QuantizationSettings, Run
from llava.train.student import _quantization, build_student
from tests.tiny import save_tiny_llava, tiny_clip_folder


def going_on(folder: Path, tower: Path, flags: str = "") -> Run:
    places = ["--model_name_or_path", folder, "--vision_tower", tower, "--data_path", "d", "--output_dir", "o"]
    own = "--mm_vision_select_layer -2 --mm_projector_type mlp2x_gelu --mm_use_im_patch_token False"
    return parse_run([*map(str, places), *own.split(), *flags.split()])


def test_the_tower_named_by_a_flag_replaces_the_one_that_the_checkpoint_names(tmp_path: Path) -> None:
    folder, tower = save_tiny_llava(tmp_path), tiny_clip_folder(tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"mm_vision_tower": "openai/clip-vit-none-such"}))
    run = going_on(folder, tower)
    student = build_student(run, build_tokenizer(run.model))
    assert student.get_vision_tower().vision_tower_name == student.config.mm_vision_tower == str(tower)


def test_the_sides_of_highres_are_recorded_as_they_are(tmp_path: Path) -> None:
    folder, tower = save_tiny_llava(tmp_path), tiny_clip_folder(tmp_path)
    run = going_on(folder, tower, "--image_aspect_ratio highres --image_grid_pinpoints 28,56")
    student = build_student(run, build_tokenizer(run.model))
    pixels = process_images([Image.new("RGB", (50, 20))], student.get_vision_tower().image_processor, student.config)
    assert pixels.shape == (1, 5, 3, 28, 28)


def test_rope_scaling_reaches_the_model_configuration(tmp_path: Path) -> None:
    folder, tower = save_tiny_llava(tmp_path), tiny_clip_folder(tmp_path)
    run = going_on(folder, tower, "--rope_scaling_factor 2 --rope_scaling_type dynamic")
    scaling = build_student(run, build_tokenizer(run.model)).config.rope_parameters
    assert (scaling["rope_type"], scaling["factor"]) == ("dynamic", 2.0)


def test_quantized_training_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = QuantizationSettings(bits=4, double_quant=False, quant_type="fp4")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        _quantization(settings, torch.bfloat16)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    asked = _quantization(settings, torch.bfloat16)
    assert (asked.bnb_4bit_use_double_quant, asked.bnb_4bit_quant_type) == (False, "fp4")
    assert asked.llm_int8_skip_modules == UNQUANTIZED
