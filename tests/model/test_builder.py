"""load_pretrained_model: its branches and its arguments."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from llava.model import LlavaLlamaForCausalLM, MoVELlavaLlamaForCausalLM
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import CheckpointError, gather_state_dict, save_parts
from llava.model.placement import resolve_attention, resolve_device_map, resolve_dtype
from tests.model import layouts
from tests.tiny import save_tiny_llava, tiny_llava, tiny_lm_folder


def load(folder: Path, base: Path | None = None, **options: Any) -> Any:
    options = {"torch_dtype": "float32"} | options
    return load_pretrained_model(str(folder), None if base is None else str(base), "any-name", **options)


def stage_one(directory: Path, made: PreTrainedModel, base: Path) -> Path:
    """A stage-1 output of `made` on the language model in `base`, whose weights `made` takes."""
    language_model = load(base)[1]
    made.load_state_dict(language_model.state_dict(), strict=False)
    folder = directory / "pretrain-output"
    layouts.write_settings(folder, layouts.settings_of(made))
    parts = {name: gather_state_dict(part) for name, part in made.parts().items()}
    mole = parts["mole"] or None
    adapters = {"eva_adapter_1.weight": torch.ones(2)} if mole else None
    save_parts(folder, projector=parts["projector"], mole=mole, adapters=adapters)
    return folder


def test_importing_the_loader_imports_nothing_that_only_training_or_serving_needs() -> None:
    code = (
        "import sys, llava.model.builder\n"
        "heavy = ['deepspeed', 'bitsandbytes', 'peft', 'gradio', 'datasets']\n"
        "move_kd = 'llava.model.multimodal_encoder.move_kd.'\n"
        "heavy += [move_kd + name for name in ('teachers', 'objectives', 'distiller', 'cache')] + ['llava.train']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_projector_directory_loads_on_its_base(tmp_path: Path) -> None:
    base = tiny_lm_folder(tmp_path)
    made = tiny_llava(tmp_path)
    folder = stage_one(tmp_path, made, base)
    tokenizer, model, image_processor, _ = load(folder, base)
    assert type(model) is LlavaLlamaForCausalLM
    assert torch.equal(layouts.logits(model), layouts.logits(made))
    assert tokenizer.bos_token_id == 1
    assert image_processor is not None


def test_a_move_kd_stage_one_directory_loads_with_its_experts(tmp_path: Path) -> None:
    base = tiny_lm_folder(tmp_path)
    made = layouts.tiny_move_kd(tmp_path)
    folder = stage_one(tmp_path, made, base)
    assert sorted(file.name for file in folder.glob("*.bin")) == [
        "encoder_adapter.bin",
        "mm_projector.bin",
        "mole_encoder.bin",
    ]
    model = load(folder, base)[1]
    assert type(model) is MoVELlavaLlamaForCausalLM
    assert torch.equal(layouts.logits(model), layouts.logits(made))


def test_a_move_kd_stage_one_directory_without_its_experts_is_refused(tmp_path: Path) -> None:
    base = tiny_lm_folder(tmp_path)
    folder = stage_one(tmp_path, layouts.tiny_move_kd(tmp_path), base)
    (folder / "mole_encoder.bin").unlink()
    with pytest.raises(CheckpointError, match=r"missing: .*mlp\.(router|moe_down)"):
        load(folder, base)


def test_experts_for_a_model_that_is_configured_without_any_are_refused(tmp_path: Path) -> None:
    base = tiny_lm_folder(tmp_path)
    folder = stage_one(tmp_path, layouts.tiny_move_kd(tmp_path), base)
    raw = json.loads((folder / "config.json").read_text()) | {"moe": {"moe_encoder": False}}
    layouts.write_settings(folder, raw)
    with pytest.raises(CheckpointError, match=r"not known to the model: .*mlp\.(router|moe_)"):
        load(folder, base)


def test_a_projector_of_another_width_is_refused(tmp_path: Path) -> None:
    base = tiny_lm_folder(tmp_path)
    folder = stage_one(tmp_path, tiny_llava(tmp_path), base)
    projector = torch.load(folder / "mm_projector.bin")
    projector["model.mm_projector.0.weight"] = torch.ones(64, 48)
    torch.save(projector, folder / "mm_projector.bin")
    with pytest.raises(CheckpointError, match=r"mm_projector\.0\.weight is \(64, 48\), the model has \(64, 32\)"):
        load(folder, base)


def test_a_projector_file_with_other_prefixes_loads(tmp_path: Path) -> None:
    base = tiny_lm_folder(tmp_path)
    made = tiny_llava(tmp_path)
    folder = stage_one(tmp_path, made, base)
    projector = torch.load(folder / "mm_projector.bin")
    for prefix in ("mm_projector.", "base_model.model.model.mm_projector."):
        renamed = {name.replace("model.mm_projector.", prefix): tensor for name, tensor in projector.items()}
        torch.save(renamed, folder / "mm_projector.bin")
        assert torch.equal(layouts.logits(load(folder, base)[1]), layouts.logits(made))


def test_embeddings_of_added_tokens_come_from_the_projector_file(tmp_path: Path) -> None:
    base = tiny_lm_folder(tmp_path)
    folder = stage_one(tmp_path, tiny_llava(tmp_path), base)
    raw = json.loads((folder / "config.json").read_text())
    layouts.write_settings(folder, raw | {"mm_use_im_start_end": True, "vocab_size": 902})
    projector = torch.load(folder / "mm_projector.bin")
    table = torch.randn(902, 64)
    torch.save(projector | {"model.embed_tokens.weight": table}, folder / "mm_projector.bin")
    tokenizer, model, _, _ = load(folder, base)
    assert torch.equal(model.get_input_embeddings().weight, table)
    assert tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"]) == [900, 901]
    head = model.get_output_embeddings().weight
    torch.testing.assert_close(head[900], head[:900].mean(dim=0))


def test_a_full_checkpoint_does_not_need_the_base_that_was_named(tmp_path: Path) -> None:
    folder = save_tiny_llava(tmp_path)
    base = tiny_lm_folder(tmp_path)
    model = load(folder)[1]
    save_parts(folder, projector=gather_state_dict(model.parts()["projector"]))  # as training does beside the weights
    assert torch.equal(layouts.logits(load(folder, base)[1]), layouts.logits(model))


def test_absent_im_patch_setting_means_the_token_is_added(tmp_path: Path) -> None:
    folder = save_tiny_llava(tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    raw.pop("mm_use_im_patch_token")
    layouts.write_settings(folder, raw)
    tokenizer, model, _, _ = load(folder)
    assert tokenizer.convert_tokens_to_ids("<im_patch>") == 900
    assert model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == 901
    assert model.config.vocab_size == 901


def test_embeddings_are_never_cut_to_the_tokenizer(tmp_path: Path) -> None:
    folder = save_tiny_llava(tmp_path, vocab_size=1024)
    tokenizer, model, _, _ = load(folder)
    assert len(tokenizer) < 1024
    assert model.get_input_embeddings().weight.shape[0] == 1024


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.bfloat16, "None", None, "auto"])
def test_the_whole_model_has_the_dtype_asked_for(tmp_path: Path, dtype: Any) -> None:
    folder = save_tiny_llava(tmp_path)
    model = load(folder, torch_dtype=dtype)[1]
    wanted = resolve_dtype(dtype)
    wanted = torch.float32 if wanted == "auto" else wanted
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    assert layouts.logits(model).isfinite().all()


def test_float16_is_the_default_and_works_on_the_cpu(tmp_path: Path) -> None:
    model = load_pretrained_model(str(save_tiny_llava(tmp_path)), None, "llava")[1]
    assert model.dtype == torch.float16
    assert layouts.logits(model).isfinite().all()


def test_the_positional_call_of_llava_next_works(tmp_path: Path) -> None:
    model = load_pretrained_model(str(save_tiny_llava(tmp_path)), None, "x", False, False, "cpu", "bfloat16", "eager")[
        1
    ]
    assert (model.dtype, model.config._attn_implementation) == (torch.bfloat16, "eager")


def test_a_dtype_in_the_place_of_the_device_is_taken_as_one(tmp_path: Path) -> None:
    folder = str(save_tiny_llava(tmp_path))
    assert load_pretrained_model(folder, None, "llava", False, False, "auto", "bfloat16")[1].dtype == torch.bfloat16
    model = load_pretrained_model(folder, None, "llava", False, False, "auto", "cpu", torch_dtype="float32")[1]
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}, None])
def test_every_device_map_of_a_machine_without_gpu_gives_a_cpu_model(tmp_path: Path, device_map: Any) -> None:
    model = load(save_tiny_llava(tmp_path), device_map=device_map, device="cuda")[1]
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_a_device_map_does_not_cut_through_the_tower(tmp_path: Path) -> None:
    model = load(save_tiny_llava(tmp_path))[1]
    assert model._no_split_modules == {"LlamaDecoderLayer", "VisionModule"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where CUDA is missing")
def test_a_cuda_device_on_a_machine_without_one_says_so() -> None:
    for device_map, device in (("cuda:0", "cuda"), ("auto", "cuda:1"), ({"": 0}, "cuda")):
        with pytest.raises(ValueError, match="needs CUDA, which this machine lacks"):
            resolve_device_map(device_map, device)


def test_flash_attention_falls_back_to_sdpa_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava.model.placement.is_flash_attn_2_available", lambda: False)
    assert resolve_attention(None, use_flash_attn=True) == "sdpa"
    assert resolve_attention("flash_attention_2", use_flash_attn=False) == "sdpa"
    assert resolve_attention("None", use_flash_attn=False) == "sdpa"
    assert resolve_attention("eager", use_flash_attn=True) == "eager"
    monkeypatch.setattr("llava.model.placement.is_flash_attn_2_available", lambda: True)
    assert resolve_attention(None, use_flash_attn=True) == "flash_attention_2"


def test_overwritten_keys_are_set_before_the_model_is_built(tmp_path: Path) -> None:
    folder = save_tiny_llava(tmp_path, rope_parameters={"rope_theta": 5e6, "rope_type": "default"})
    overwrite = {
        "mm_spatial_pool_stride": 3,
        "mm_vision_select_layer": -1,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "max_sequence_length": 300,
    }
    _, model, _, context_len = load(folder, overwrite_config=overwrite)
    assert model.config.mm_spatial_pool_stride == 3
    assert model.get_vision_tower().select_layer == -1
    assert model.config.rope_parameters["factor"] == 2.0
    assert model.config.rope_parameters["rope_theta"] == 5e6
    assert context_len == 300


@pytest.mark.parametrize("form", ["object", "dict", "file"])
def test_a_customized_config_replaces_the_checkpoints(tmp_path: Path, form: str) -> None:
    folder = save_tiny_llava(tmp_path)
    config = load(folder)[1].config
    config.image_aspect_ratio = "anyres"
    config.to_json_file(tmp_path / "custom.json")
    forms = {"object": config, "dict": config.to_dict(), "file": str(tmp_path / "custom.json")}
    model = load(folder, customized_config=forms[form])[1]
    assert model.config.image_aspect_ratio == "anyres"
    assert model.config.model_type == "llava_llama"


def test_the_calls_of_lmms_eval_work(tmp_path: Path) -> None:
    folder = str(save_tiny_llava(tmp_path))
    arguments = {"device_map": "auto", "multimodal": True, "attn_implementation": "sdpa"}
    _, model, image_processor, context_len = load_pretrained_model(folder, None, "llava", **arguments)
    model.eval()
    model.tie_weights()
    assert image_processor is not None
    assert context_len == 512
    arguments["overwrite_config"] = {"mm_spatial_pool_stride": 2, "mm_spatial_pool_mode": "average"}
    assert load_pretrained_model(folder, None, "llava", **arguments)[1].config.mm_spatial_pool_mode == "average"


def test_keywords_that_mean_nothing_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_tiny_llava(tmp_path)
    import logging

    logger = logging.getLogger("llava.model.builder")
    logger.addHandler(caplog.handler)
    load(folder, no_such_option=1)
    logger.removeHandler(caplog.handler)
    assert "ignores no_such_option" in caplog.text


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("layout", [layouts.llava_15, layouts.move_kd])
def test_only_the_language_model_is_quantized(tmp_path: Path, bits: int, layout: Any) -> None:
    pytest.importorskip("bitsandbytes")
    folder, made = layout(tmp_path)
    model = load(folder, **{f"load_{bits}bit": True})[1]
    quantized = {
        name
        for name, module in model.named_modules()
        if type(module).__name__.startswith("Linear") and type(module) is not torch.nn.Linear
    }
    assert quantized == {
        f"model.layers.{layer}.{name}"
        for layer in range(2)
        for name in [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    }
    assert type(model.lm_head) is torch.nn.Linear
    assert torch.equal(
        model.get_vision_tower().state_dict()["vision_tower.vision_model.post_layernorm.weight"],
        made.get_vision_tower().state_dict()["vision_tower.vision_model.post_layernorm.weight"],
    )
    answer, exact = layouts.logits(model), layouts.logits(made)
    assert (answer - exact).norm() < 0.5 * exact.norm()
    ids = torch.tensor([[1, 5, -200, 8]])
    image = torch.randn(1, 3, 28, 28)
    assert model.generate(ids, images=image, max_new_tokens=3, do_sample=False).shape[1] <= 3


def test_four_bits_work_where_widths_are_no_multiple_of_the_packing_blocks(tmp_path: Path) -> None:
    folder = save_tiny_llava(tmp_path, hidden_size=96, head_dim=24)
    _, model, _, _ = load(folder, load_4bit=True)
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[1, 5, 8]])).logits.isfinite().all()
