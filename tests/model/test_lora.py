"""LoRA folders: ours and the published form, onto their base, merged or beside quantized weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file

from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import CheckpointError, load_lora, save_lora, save_student
from llava.model.checkpoint_lora import lora_parameters
from tests.model import layouts
from tests.tiny import save_tiny_llava, tiny_llava, tiny_lm_folder, tiny_tokenizer_folder

LANGUAGE_TARGETS = r"model\.layers\.\d+\..*(q|k|v|o|gate|up|down)_proj"


def load(folder: Path, base: Path | None, **options: Any) -> Any:
    options = {"torch_dtype": "float32"} | options
    return load_pretrained_model(str(folder), None if base is None else str(base), "name", **options)


def trained_lora(model: Any, targets: Any = LANGUAGE_TARGETS) -> Any:
    """`model` with a LoRA that has learned something; projector and experts are trained beside it."""
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for parameter in lora_parameters(wrapped).values():
            parameter.normal_(std=0.1)
        parts = model.parts()
        for parameter in [*parts["projector"].values(), *parts["mole"].values()]:
            parameter.add_(torch.randn_like(parameter) * 0.1).requires_grad_(True)
    return wrapped.eval()


def test_our_lora_folder_loads_on_its_base(tmp_path: Path) -> None:
    base = save_tiny_llava(tmp_path)
    wrapped = trained_lora(load(base, None)[1])
    expected = layouts.logits(wrapped)
    save_lora(wrapped, tmp_path / "lora")
    assert sorted(file.name for file in (tmp_path / "lora").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        "non_lora_trainables.bin",
    ]
    _, model, image_processor, _ = load(tmp_path / "lora", base)
    assert type(model).__name__ == "LlavaLlamaForCausalLM"
    assert not any("lora" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(layouts.logits(model), expected, rtol=1e-4, atol=1e-5)
    assert image_processor is not None


def test_experts_are_kept_when_a_lora_is_trained_beside_them(tmp_path: Path) -> None:
    base, _ = layouts.move_kd(tmp_path)
    wrapped = trained_lora(load(base, None)[1])
    expected = layouts.logits(wrapped)
    save_lora(wrapped, tmp_path / "lora")
    saved = torch.load(tmp_path / "lora" / "non_lora_trainables.bin")
    experts = [name for name in saved if ".lora_A." in name or ".lora_B." in name]
    assert len(experts) == 3 * 2 * 3 * 4  # layers, projections, experts, tensors of each
    assert all(name.startswith("base_model.model.model.vision_tower.") for name in experts)
    adapter = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert len(adapter) == 2 * 7 * 2
    assert not any("moe" in name for name in adapter)
    torch.testing.assert_close(layouts.logits(load(tmp_path / "lora", base)[1]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [None, 8])
def test_layers_injected_into_a_student_are_saved_as_an_adapter_of_its_base(tmp_path: Path, bits: int | None) -> None:
    base = save_tiny_llava(tmp_path)
    student = load(base, None, load_8bit=bits == 8)[1]
    inject_adapter_in_model(LoraConfig(r=4, target_modules=LANGUAGE_TARGETS), student)
    with torch.no_grad():
        for parameter in lora_parameters(student).values():
            parameter.normal_(std=0.1)
    expected = layouts.logits(student)
    save_lora(student, tmp_path / "lora")
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base)
    assert "quantization_config" not in json.loads((tmp_path / "lora" / "config.json").read_text())
    model = load(tmp_path / "lora", None, load_8bit=bits == 8)[1]
    torch.testing.assert_close(layouts.logits(model), expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_projector_is_saved_all_the_same(tmp_path: Path) -> None:
    base = tiny_lm_folder(tmp_path)
    student = tiny_llava(tmp_path)
    student.load_state_dict(load(base, None)[1].state_dict(), strict=False)
    wrapped = trained_lora(student)
    expected = layouts.logits(wrapped)
    for parameter in student.parts()["projector"].values():
        parameter.requires_grad_(False)
    save_lora(wrapped, tmp_path / "lora")
    torch.testing.assert_close(layouts.logits(load(tmp_path / "lora", base)[1]), expected, rtol=1e-4, atol=1e-5)


def published_lora(directory: Path) -> tuple[Path, Path, torch.Tensor]:
    """llava-v1.5-7b-lora on vicuna: adapter_model.bin whose settings name bare suffixes, which match the tower too,
    and a projector in non_lora_trainables.bin."""
    base = tiny_lm_folder(directory)
    model = tiny_llava(directory)
    model.load_state_dict(load(base, None)[1].state_dict(), strict=False)
    raw = layouts.settings_of(model)
    wrapped = trained_lora(model)
    folder = directory / "published-lora"
    layouts.write_settings(folder, raw)
    adapter = {
        f"{name.replace('.default', '')}": parameter.detach().clone()
        for name, parameter in lora_parameters(wrapped).items()
    }
    assert all(name.startswith("base_model.model.model.layers.") for name in adapter)
    torch.save(adapter, folder / "adapter_model.bin")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": targets, "task_type": "CAUSAL_LM"}
    settings |= {"base_model_name_or_path": "llama-tiny", "modules_to_save": None, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"a_key_of_another_version": 1}))
    projector = {n: p.detach().clone() for n, p in wrapped.named_parameters() if "mm_projector" in n}
    torch.save(projector, folder / "non_lora_trainables.bin")
    return folder, base, layouts.logits(wrapped)


def test_the_published_lora_form_loads_on_a_language_model(tmp_path: Path) -> None:
    folder, base, expected = published_lora(tmp_path)
    tokenizer, model, _, _ = load(folder, base)
    torch.testing.assert_close(layouts.logits(model), expected, rtol=1e-4, atol=1e-5)
    assert tokenizer("a").input_ids[0] == 1


def test_a_base_that_the_adapter_names_is_used_if_none_is_passed(tmp_path: Path) -> None:
    folder, base, expected = published_lora(tmp_path)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))
    torch.testing.assert_close(layouts.logits(load(folder, None)[1]), expected, rtol=1e-4, atol=1e-5)


def test_a_bare_adapter_goes_by_its_bases_config(tmp_path: Path) -> None:
    base = save_tiny_llava(tmp_path)
    wrapped = trained_lora(load(base, None)[1])
    expected = layouts.logits(wrapped)
    save_lora(wrapped, tmp_path / "lora")
    (tmp_path / "lora" / "config.json").unlink()
    for named in (base, None):
        model = load(tmp_path / "lora", named)[1]
        torch.testing.assert_close(layouts.logits(model), expected, rtol=1e-4, atol=1e-5)


def test_a_lora_folder_without_its_projector_is_refused(tmp_path: Path) -> None:
    folder, base, _ = published_lora(tmp_path)
    (folder / "non_lora_trainables.bin").unlink()
    with pytest.raises(CheckpointError, match=r"has no projector in non_lora_trainables\.bin.*Fetch"):
        load(folder, base)


def test_a_lora_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder, base, _ = published_lora(tmp_path)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_config\.json but neither adapter_model\.safetensors"):
        load(folder, base)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    folder, _, _ = published_lora(tmp_path)
    layouts_base = save_tiny_llava(tmp_path / "short", num_hidden_layers=1)
    model = load(layouts_base, None)[1]
    with pytest.raises(
        CheckpointError, match=r"for 7 modules that this model lacks, such as .*: pass that as model_base"
    ):
        load_lora(model, folder)


def test_an_adapter_of_another_rank_or_with_a_tensor_lost_is_refused(tmp_path: Path) -> None:
    folder, base, _ = published_lora(tmp_path)
    adapter = torch.load(folder / "adapter_model.bin")
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    torch.save({key: value for key, value in adapter.items() if key != name}, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"missing \['model\.layers\.0\.mlp\.up_proj\.lora_B\.weight'\]"):
        load(folder, base)
    torch.save(adapter | {name: torch.ones(len(adapter[name]), 5)}, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"up_proj\.lora_B\.weight is \(\d+, 5\), not \(\d+, 4\)"):
        load(folder, base)


def test_added_token_rows_in_a_lora_folder_win_over_the_base(tmp_path: Path) -> None:
    folder, base, _ = published_lora(tmp_path)
    raw = json.loads((folder / "config.json").read_text()) | {"vocab_size": 901, "mm_use_im_patch_token": True}
    layouts.write_settings(folder, raw)
    rest = torch.load(folder / "non_lora_trainables.bin")
    rest["base_model.model.model.embed_tokens.weight"] = torch.randn(901, 64)
    rest["base_model.model.lm_head.weight"] = torch.randn(901, 64)
    torch.save(rest, folder / "non_lora_trainables.bin")
    tokenizer, model, _, _ = load(folder, base)
    assert torch.equal(model.get_input_embeddings().weight, rest["base_model.model.model.embed_tokens.weight"])
    assert torch.equal(model.lm_head.weight, rest["base_model.model.lm_head.weight"])
    assert tokenizer.convert_tokens_to_ids("<im_patch>") == 900


def test_a_lora_on_the_towers_attention_as_some_published_ones_have_it(tmp_path: Path) -> None:
    base = save_tiny_llava(tmp_path)
    wrapped = trained_lora(load(base, None)[1], targets=["q_proj", "v_proj"])
    assert any("vision_tower" in name for name in lora_parameters(wrapped))
    expected = layouts.logits(wrapped)
    save_lora(wrapped, tmp_path / "lora")
    torch.testing.assert_close(layouts.logits(load(tmp_path / "lora", base)[1]), expected, rtol=1e-4, atol=1e-5)


def test_a_quantized_base_keeps_the_adapter_beside_it(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = save_tiny_llava(tmp_path)
    wrapped = trained_lora(load(base, None)[1])
    expected = layouts.logits(wrapped)
    save_lora(wrapped, tmp_path / "lora")
    model = load(tmp_path / "lora", base, load_8bit=True)[1]
    assert type(model).__name__ == "LlavaLlamaForCausalLM"
    assert lora_parameters(model)
    difference = (layouts.logits(model) - expected).norm() / expected.norm()
    assert difference < 0.1


def test_a_plain_language_models_adapter_is_merged(tmp_path: Path) -> None:
    base = tiny_lm_folder(tmp_path)
    plain = load(base, None)[1]
    wrapped = get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for parameter in lora_parameters(wrapped).values():
        torch.nn.init.normal_(parameter)
    ids = torch.tensor([[1, 2, 3]])
    expected = wrapped(input_ids=ids).logits
    wrapped.save_pretrained(tmp_path / "adapter")
    _, merged, image_processor, _ = load(tmp_path / "adapter", base)
    assert image_processor is None
    assert type(merged).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_trained_adapter_is_taken_up_again_for_training(tmp_path: Path) -> None:
    base = save_tiny_llava(tmp_path)
    wrapped = trained_lora(load(base, None)[1])
    save_lora(wrapped, tmp_path / "lora")
    again = load_lora(load(base, None)[1], tmp_path / "lora", trainable=True)
    before, after = lora_parameters(wrapped), lora_parameters(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and after[name].requires_grad for name in before)


def test_a_student_without_adapter_has_none_to_save(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the model has none"):
        save_lora(tiny_llava(tmp_path), tmp_path / "lora")


def test_a_quantized_student_is_not_saved_whole(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = load(tiny_tokenizer_folder(save_tiny_llava(tmp_path)), None, load_8bit=True)[1]
    with pytest.raises(CheckpointError, match="save_lora"):
        save_student(model, tmp_path / "out")
