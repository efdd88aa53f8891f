"""The commands that merge, extract and convert checkpoints."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import CheckpointError, load_student, read_state_dict, save_lora
from llava.model.checkpoint_lora import lora_parameters
from tests.model import layouts
from tests.tiny import save_tiny_llava

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    script(name).main()


def lora_on(base: Path, folder: Path) -> torch.Tensor:
    """Save a trained LoRA of `base` to `folder`; returns its logits."""
    model = load_student(None, base)
    config = LoraConfig(r=4, target_modules=r"model\.layers\..*_proj", base_model_name_or_path=str(base))
    wrapped = get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in lora_parameters(wrapped).values():
            parameter.normal_(std=0.1)
    save_lora(wrapped, folder)
    return layouts.logits(wrapped)


def test_merging_writes_safetensors_in_the_bases_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _ = layouts.llava_15(tmp_path)
    expected = lora_on(base, tmp_path / "lora")
    arguments = ("--model-path", tmp_path / "lora", "--model-base", base, "--save-model-path", tmp_path / "out")
    run("merge_lora_weights", monkeypatch, *arguments)
    state = read_state_dict(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert not any("lora" in name for name in state)
    _, model, _, _ = load_pretrained_model(str(tmp_path / "out"), None, "x", torch_dtype="auto")
    torch.testing.assert_close(layouts.logits(model), expected, rtol=1e-4, atol=1e-5)


def test_merging_in_half_precision_keeps_it(tmp_path: Path) -> None:
    base = save_tiny_llava(tmp_path)
    from llava.model.checkpoint import save_student

    save_student(load_student(None, base, dtype=torch.float16), base)
    lora_on(base, tmp_path / "lora")
    findings = script("merge_lora_weights").merge_lora(str(tmp_path / "lora"), str(base), str(tmp_path / "out"))
    assert findings[0].difference < 2e-2
    assert {tensor.dtype for tensor in read_state_dict(tmp_path / "out").values()} == {torch.float16}


def test_merging_onto_another_base_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny_llava(tmp_path)
    lora_on(base, tmp_path / "lora")
    other = base.rename(tmp_path / "another")
    arguments = ("--model-path", tmp_path / "lora", "--model-base", other, "--save-model-path", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"was trained on .*llava-tiny', not on .*another"):
        run("merge_lora_weights", monkeypatch, *arguments)
    run("merge_lora_weights", monkeypatch, *arguments, "--any-base")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_what_is_read_is_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny_llava(tmp_path)
    lora_on(base, tmp_path / "lora")
    before = (base / "model.safetensors").read_bytes()
    merge = ("--model-path", tmp_path / "lora", "--model-base", base, "--any-base", "--save-model-path")
    for output in (base, tmp_path / "lora"):
        with pytest.raises(SystemExit, match="name another directory"):
            run("merge_lora_weights", monkeypatch, *merge, output)
    for target in ("hf", "original"):
        with pytest.raises(SystemExit, match="name another directory"):
            run("convert_checkpoint", monkeypatch, "--model-path", base, "--output", base, "--format", target)
    assert (base / "model.safetensors").read_bytes() == before


def test_the_projector_is_extracted_from_any_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, native = layouts.hf_native(tmp_path)
    run("extract_mm_projector", monkeypatch, "--model-path", folder, "--output", tmp_path / "mm_projector.bin")
    projector = torch.load(tmp_path / "mm_projector.bin")
    assert set(projector) == {f"model.mm_projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert torch.equal(projector["model.mm_projector.2.bias"], native.model.multi_modal_projector.linear_2.bias)


def test_there_is_no_projector_to_extract_from_a_language_model(tmp_path: Path) -> None:
    from tests.tiny import tiny_lm_folder

    with pytest.raises(CheckpointError, match="holds no projector"):
        script("extract_mm_projector").extract_projector(str(tiny_lm_folder(tmp_path)), str(tmp_path / "x.bin"))


@pytest.mark.parametrize("layout", [layouts.llava_15, layouts.llava_16])
def test_a_model_becomes_transformers_own_class_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Any
) -> None:
    folder, made = layout(tmp_path)
    run("convert_checkpoint", monkeypatch, "--model-path", folder, "--output", tmp_path / "hf", "--format", "hf")
    raw = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert raw["text_config"]["vocab_size"] % 64 == 0
    names = read_state_dict(tmp_path / "hf")
    assert "language_model.model.embed_tokens.weight" in names
    assert "vision_tower.vision_model.pre_layrnorm.weight" in names
    arguments = ("--model-path", tmp_path / "hf", "--output", tmp_path / "again", "--format", "original")
    run("convert_checkpoint", monkeypatch, *arguments)
    again = read_state_dict(tmp_path / "again")
    original = made.state_dict()
    assert again.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(again[name][: len(tensor)], tensor)
