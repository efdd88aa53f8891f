"""`export hf`: what comes out answers as what went in, and what does not is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llava.export import native
from llava.export.compare import compare, record, verify
from llava.export.hf import Source, export_hf
from llava.model.checkpoint import CheckpointError, load_student, save_lora, save_student
from llava.model.checkpoint_config import model_class_of
from llava.model.checkpoint_lora import lora_parameters
from tests.export.conftest import KINDS, TILES, Exported, chat_of
from tests.model import layouts
from tests.tiny import save_tiny_llava, tiny_clip_folder, tiny_config, tiny_tokenizer_folder

CLASSES = {
    "pad": "LlavaForConditionalGeneration",
    "square_cls": "LlavaForConditionalGeneration",
    "siglip": "LlavaForConditionalGeneration",
    "tiles": "LlavaNextForConditionalGeneration",
    "siglip_tiles": "LlavaNextForConditionalGeneration",
    "experts": "ClipMoleLlavaForConditionalGeneration",
    "experts_tiles": "ClipMoleLlavaNextForConditionalGeneration",
}


def config_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_ids_pixels_and_logits_are_those_of_the_model(exported: Callable[[str], Exported], kind: str) -> None:
    made = exported(kind)
    assert len(made.findings) == 4
    assert all(finding.holds for finding in made.findings)
    assert made.findings[2].difference < 1e-3  # levels of 255
    assert config_of(made.directory)["architectures"] == [CLASSES[kind]]


def test_a_layout_that_is_not_named_stays_square(tmp_path: Path) -> None:
    source = save_tiny_llava(tmp_path, image_aspect_ratio=None)
    export_hf(Source(str(source), device="cpu"), tmp_path / "out")
    assert chat_of(tmp_path / "out").settings["image_aspect_ratio"] == "square"


def test_plain_models_are_in_the_format_that_every_release_reads(exported: Callable[[str], Exported]) -> None:
    directory = exported("tiles").directory
    names = load_file(directory / "model.safetensors")
    assert {
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
        "vision_tower.vision_model.pre_layrnorm.weight",
        "multi_modal_projector.linear_2.bias",
        "image_newline",
    } <= set(names)
    config = config_of(directory)
    assert config["text_config"]["vocab_size"] == len(names["language_model.lm_head.weight"])
    assert config["text_config"]["vocab_size"] % 64 == 0
    assert config["text_config"]["rope_theta"] == 10000.0
    assert config["image_grid_pinpoints"][0] == [56, 28]  # (height, width), unlike LLaVA's
    assert not (directory / "modeling_clip_mole.py").exists()


def test_a_student_with_experts_names_the_code_beside_it(exported: Callable[[str], Exported]) -> None:
    directory = exported("experts").directory
    config = config_of(directory)
    assert config["vision_config"]["model_type"] == "clip_mole_vision_model"
    assert config["auto_map"]["AutoConfig"] == "modeling_clip_mole.ClipMoleLlavaConfig"
    assert (directory / "modeling_clip_mole.py").read_text() == native.SHIPPED.read_text()
    assert config_of(exported("experts_tiles").directory)["vision_config"]["num_expert_layers"] == 2


def test_nothing_of_the_machine_is_written(exported: Callable[[str], Exported]) -> None:
    made = exported("experts")
    texts = [file.read_text() for file in made.directory.iterdir() if file.suffix in (".json", ".md", ".jinja")]
    assert texts
    assert not any(str(made.source.parent) in text for text in texts)


@pytest.mark.parametrize(
    ("dtype", "overrides"), [("float16", {}), ("bfloat16", TILES), (None, {"tie_word_embeddings": True})]
)
def test_other_dtypes_and_tied_embeddings_survive(tmp_path: Path, dtype: str | None, overrides: dict[str, Any]) -> None:
    source = save_tiny_llava(tmp_path, **overrides)
    export_hf(Source(str(source), dtype=dtype, device="cpu"), tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in state.values()} == {f"torch.{dtype or 'float32'}"}
    assert ("language_model.lm_head.weight" in state) == (not overrides.get("tie_word_embeddings"))


OTHER_BACKBONES: dict[str, dict[str, Any]] = {
    "llava_qwen": {"moe": layouts.MOE},
    "llava_gemma": {"head_dim": 16, **TILES},
    "llava_mixtral": {"num_local_experts": 3},
    "llava_qwen_moe": {
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
}


def other_student(model_type: str, directory: Path) -> Any:
    settings = tiny_config(tiny_clip_folder(directory)).to_dict() | OTHER_BACKBONES[model_type]
    settings.pop("model_type")
    student: Any = model_class_of(model_type)(CONFIG_MAPPING[model_type](**settings))
    student.get_vision_tower().load_model()
    return student


@pytest.mark.parametrize("model_type", OTHER_BACKBONES)
def test_other_language_models_survive(tmp_path: Path, model_type: str) -> None:
    source = tiny_tokenizer_folder(tmp_path / "source")
    save_student(other_student(model_type, tmp_path), source)
    findings = export_hf(Source(str(source), device="cpu"), tmp_path / "out")
    assert all(finding.holds for finding in findings)


def test_a_lora_is_merged_on_the_way(tmp_path: Path) -> None:
    base = save_tiny_llava(tmp_path)
    settings = LoraConfig(r=4, target_modules=r"model\.layers\..*q_proj", base_model_name_or_path=str(base))
    wrapped = get_peft_model(load_student(None, base), settings)
    with torch.no_grad():
        for parameter in lora_parameters(wrapped).values():
            parameter.normal_(std=0.1)
    save_lora(wrapped, tmp_path / "lora")
    export_hf(Source(str(tmp_path / "lora"), str(base), device="cpu"), tmp_path / "out")
    name = "layers.0.self_attn.q_proj.weight"
    merged = load_file(tmp_path / "out" / "model.safetensors")[f"language_model.model.{name}"]
    assert not torch.allclose(merged, load_file(base / "model.safetensors")[f"model.{name}"], atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "tensor"),
    [
        ("pad", "multi_modal_projector.linear_1.weight"),
        ("tiles", "image_newline"),
        ("experts", "model.vision_tower.encoder.layers.0.mlp.moe_up.reduce_bias"),
    ],
)
def test_a_changed_weight_is_found(exported: Callable[[str], Exported], tmp_path: Path, kind: str, tensor: str) -> None:
    made = exported(kind)
    directory = tmp_path / "copy"
    directory.mkdir()
    for file in made.directory.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    state = load_file(directory / "model.safetensors")
    state[tensor] += 1.0
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    findings = compare(record(chat_of(made.source)), directory, "cpu")
    with pytest.raises(CheckpointError, match="differs from its model in logits"):
        verify(findings, directory)


def test_a_picture_that_is_cropped_and_not_padded_is_found(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    made = exported("pad")
    directory = tmp_path / "copy"
    directory.mkdir()
    for file in made.directory.iterdir():
        (directory / file.name).write_bytes(file.read_bytes().replace(b'"do_pad": true', b'"do_pad": false'))
    with pytest.raises(CheckpointError, match="pixels of 4 pictures"):
        verify(compare(record(chat_of(made.source)), directory, "cpu"), directory)


def test_a_missing_tensor_is_an_error(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    made = exported("experts")
    for file in made.directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["model.vision_tower.encoder.layers.1.mlp.router.bias"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing_keys.*mlp\.router\.bias"):
        compare(record(chat_of(made.source)), tmp_path, "cpu")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"mm_projector_type": "linear"}, "the projector linear"),
        (
            {"mm_vision_select_feature": "slice_m25811_f6_patch", "mm_hidden_size": 160},
            "features slice_m25811_f6_patch",
        ),
        (
            {"image_aspect_ratio": "anyres_max_2", **{k: v for k, v in TILES.items() if "ratio" not in k}},
            "anyres_max_2",
        ),
        ({"image_aspect_ratio": "highres"}, "pictures laid out as highres"),
        ({"s2": True, "s2_scales": "28,56", "mm_hidden_size": 64}, "a multi-scale tower"),
    ],
)
def test_what_transformers_has_no_class_for_is_refused_in_one_line(
    tmp_path: Path, overrides: dict[str, Any], reason: str
) -> None:
    if "slice" in reason:
        overrides = overrides | {"num_hidden_layers": 2}
    source = _saved(tmp_path, overrides)
    with pytest.raises(CheckpointError, match=reason) as error:
        export_hf(Source(str(source), device="cpu"), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def _saved(directory: Path, overrides: dict[str, Any]) -> Path:
    if "slice" not in str(overrides):
        return save_tiny_llava(directory, **overrides)
    return save_tiny_llava(directory, tower=tiny_clip_folder(directory, num_hidden_layers=12), **overrides)


def test_templates_that_announce_pictures_are_refused(tmp_path: Path) -> None:
    source = save_tiny_llava(tmp_path)
    with pytest.raises(CheckpointError, match="--conv-mode"):
        export_hf(Source(str(source), device="cpu", template="v1_mmtag"), tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_loads_here_again_and_exports_to_the_same_weights(
    exported: Callable[[str], Exported], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = exported(kind)
    # transformers asks before it runs code that lies beside weights; reading them here needs none of it.
    monkeypatch.setattr("builtins.input", pytest.fail)
    before, after = chat_of(made.source), chat_of(made.directory)
    assert after.template == before.template
    wanted, given = record(before), record(after)
    assert [dialog.ids for dialog in given.dialogs] == [dialog.ids for dialog in wanted.dialogs]
    torch.testing.assert_close(given.logits[..., : wanted.logits.shape[-1]], wanted.logits)
    export_hf(Source(str(made.directory), device="cpu"), tmp_path / "again")
    first, second = (load_file(folder / "model.safetensors") for folder in (made.directory, tmp_path / "again"))
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


def test_the_scale_of_gemmas_pictures_is_applied_once_however_often_it_is_exported(tmp_path: Path) -> None:
    source = tiny_tokenizer_folder(tmp_path / "source")
    save_student(other_student("llava_gemma", tmp_path), source)
    wanted = record(chat_of(source)).logits
    for name in ("once", "twice"):
        export_hf(Source(str(source), device="cpu"), tmp_path / name)
        source = tmp_path / name
    torch.testing.assert_close(record(chat_of(source)).logits[..., : wanted.shape[-1]], wanted)
