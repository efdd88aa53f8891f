"""How a language model gets its vision modules: from a checkpoint, from what a checkpoint lacks, from arguments."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import LlavaConfig, LlavaLlamaForCausalLM, MoVELlavaLlamaConfig, MoVELlavaLlamaForCausalLM
from llava.model.checkpoint import load_student, save_student
from llava.model.checkpoint_io import CheckpointError
from llava.model.multimodal_projector.builder import IdentityMap, build_vision_projector
from llava.model.multimodal_resampler.builder import build_vision_resampler
from llava.train.model_arguments import ModelArguments
from tests.tiny import (
    HIDDEN_SIZE,
    LANGUAGE_SETTINGS,
    VISION_WIDTH,
    save_tiny_llava,
    tiny_clip_folder,
    tiny_config,
    tiny_images,
    tiny_llava,
    tiny_lm_folder,
    tiny_tokenizer,
)

MOE = {
    "moe_encoder": True,
    "moe_encoder_dense": False,
    "moe_encoder_lora_rank": 4,
    "moe_encoder_lora_alpha": 1,
    "moe_encoder_num_experts": 3,
}
TOWER = "model.vision_tower."


def rewrite(folder: Path, keep: Any) -> None:
    """Drop the tensors of a saved checkpoint whose name `keep` refuses."""
    file = folder / "model.safetensors"
    state = {name: tensor for name, tensor in load_file(file).items() if keep(name)}
    save_file(state, file, metadata={"format": "pt"})


def arguments(tower: Path | None, **overrides: Any) -> SimpleNamespace:
    values = {
        "vision_tower": None if tower is None else str(tower),
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "flat",
        "pretrain_mm_mlp_adapter": None,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "tune_mm_mlp_adapter": False,
    }
    return SimpleNamespace(**(values | overrides))


def blind_model(directory: Path) -> Any:
    return LlavaLlamaForCausalLM.from_pretrained(tiny_lm_folder(directory))


def test_a_checkpoint_without_a_tower_takes_it_from_the_encoder_it_names(tmp_path: Path) -> None:
    folder = save_tiny_llava(tmp_path)
    expected = load_file(folder / "model.safetensors")
    rewrite(folder, lambda name: not name.startswith(TOWER))
    model = LlavaLlamaForCausalLM.from_pretrained(folder)
    assert model.get_vision_tower().is_loaded
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_a_tower_in_the_checkpoint_goes_before_the_encoder_it_names(tmp_path: Path) -> None:
    folder = save_tiny_llava(tmp_path)
    file = folder / "model.safetensors"
    state = load_file(file)
    name = TOWER + "vision_tower.vision_model.embeddings.class_embedding"
    state[name] = torch.ones(VISION_WIDTH)
    save_file(state, file, metadata={"format": "pt"})
    assert bool((LlavaLlamaForCausalLM.from_pretrained(folder).state_dict()[name] == 1).all())


def test_a_tower_in_pieces_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_llava(tmp_path)
    rewrite(folder, lambda name: "encoder.layers.0" not in name)
    with pytest.raises(ValueError, match="holds only 39 of the vision tower's 55 tensors"):
        LlavaLlamaForCausalLM.from_pretrained(folder)


def test_experts_and_newline_that_a_checkpoint_lacks_start_as_they_are_defined(tmp_path: Path) -> None:
    folder = save_tiny_llava(tmp_path)
    plain = LlavaLlamaForCausalLM.from_pretrained(folder).get_vision_tower()
    config = LlavaConfig.from_pretrained(folder)
    config.moe, config.mm_patch_merge_type = {**MOE, "moe_init_b": "zero"}, "spatial_unpad"
    # Under the names that the checkpoint would have with experts, but without the experts themselves.
    state = {name.replace(".mlp.fc", ".mlp.original_module.fc") if TOWER in name else name: tensor
             for name, tensor in load_file(folder / "model.safetensors").items()}  # fmt: skip
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model = LlavaLlamaForCausalLM.from_pretrained(folder, config=config)
    for name, parameter in model.parts()["mole"].items():
        assert bool(parameter.isfinite().all()), name
        if "expand_weight" in name:
            assert not parameter.any()
        if "reduce_weight" in name:
            assert float(parameter.detach().std()) > 0.01
    assert 0.05 < float(model.get_model().image_newline.detach().std()) < 0.25
    images = tiny_images(1)
    torch.testing.assert_close(model.get_vision_tower()(images), plain(images))


def test_experts_in_a_checkpoint_load_as_they_were_saved(tmp_path: Path) -> None:
    model = tiny_llava(tmp_path, moe=MOE)
    model.save_pretrained(tmp_path / "saved")
    loaded = LlavaLlamaForCausalLM.from_pretrained(tmp_path / "saved")
    again = loaded.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_loads_in_another_dtype_and_onto_a_device_map(tmp_path: Path) -> None:
    folder = save_tiny_llava(tmp_path)
    rewrite(folder, lambda name: not name.startswith(TOWER))
    model = LlavaLlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": "cpu"})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    ids = torch.tensor([[1, IMAGE_TOKEN_INDEX, 7]])
    assert model.generate(ids, images=tiny_images(1), max_new_tokens=2, pad_token_id=0).shape == (1, 2)


def test_config_keys_that_nobody_knows_survive(tmp_path: Path) -> None:
    config = tiny_config(tiny_clip_folder(tmp_path), some_future_key={"a": 1}, image_grid_pinpoints="(1x1),...,(2x2)")
    config.save_pretrained(tmp_path / "config")
    saved = json.loads((tmp_path / "config" / "config.json").read_text())
    assert saved["some_future_key"] == {"a": 1}
    again = AutoConfig.from_pretrained(tmp_path / "config")
    assert isinstance(again, LlavaConfig)
    assert again.image_grid_pinpoints == "(1x1),...,(2x2)"


def test_move_kd_config_takes_flat_values_and_dicts() -> None:
    plain = MoVELlavaLlamaConfig(**LANGUAGE_SETTINGS)
    assert plain.moe == {**MOE, "moe_encoder_lora_rank": 32}
    assert plain.kd == {"kd_mode": True}
    flat = MoVELlavaLlamaConfig(moe_encoder_lora_rank=8, kd_mode=False, **LANGUAGE_SETTINGS)
    assert flat.moe["moe_encoder_lora_rank"] == 8
    assert flat.kd == {"kd_mode": False}
    both = MoVELlavaLlamaConfig(moe={"moe_encoder_lora_rank": 4}, moe_encoder_lora_rank=8, **LANGUAGE_SETTINGS)
    assert both.moe["moe_encoder_lora_rank"] == 4
    assert not hasattr(flat, "moe_encoder_lora_rank")


def test_move_kd_model_survives_saving(tmp_path: Path) -> None:
    vision = tiny_config(tiny_clip_folder(tmp_path)).to_dict()
    settings = {key: value for key, value in vision.items() if key.startswith("mm_") or key in LANGUAGE_SETTINGS}
    model = MoVELlavaLlamaForCausalLM(MoVELlavaLlamaConfig(moe=MOE, **settings))
    model.get_vision_tower().load_model()
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (saved["model_type"], saved["architectures"]) == ("move_llava_llama", ["MoVELlavaLlamaForCausalLM"])
    assert (saved["moe"], saved["kd"]) == (MOE, {"kd_mode": True})
    loaded = MoVELlavaLlamaForCausalLM.from_pretrained(tmp_path / "saved")
    assert len(loaded.parts()["mole"]) == 3 * 10


def test_initialize_vision_modules_gives_a_blind_model_eyes(tmp_path: Path) -> None:
    model = blind_model(tmp_path)
    assert model.get_vision_tower() is None
    tower = tiny_clip_folder(tmp_path)
    model.get_model().initialize_vision_modules(arguments(tower, mm_patch_merge_type="spatial_unpad"))
    config = model.config
    assert (config.mm_vision_tower, config.mm_hidden_size, config.use_mm_proj) == (str(tower), VISION_WIDTH, True)
    assert (config.mm_projector_type, config.mm_patch_merge_type) == ("mlp2x_gelu", "spatial_unpad")
    assert model.get_vision_tower().is_loaded
    assert model.get_model().image_newline.shape == (HIDDEN_SIZE,)
    ids = torch.tensor([[1, IMAGE_TOKEN_INDEX, 7]])
    model(input_ids=ids, labels=ids, images=[tiny_images(1)]).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert set(model.parts()["projector"]) <= trained
    assert not set(model.parts()["vision_tower"]) & trained


def test_initialize_vision_modules_builds_experts_that_the_config_asks_for(tmp_path: Path) -> None:
    model = blind_model(tmp_path)
    model.config.moe = MOE
    model.get_model().initialize_vision_modules(arguments(tiny_clip_folder(tmp_path)))
    assert all(parameter.requires_grad for parameter in model.parts()["mole"].values())


def test_initialize_vision_modules_keeps_what_is_there(tmp_path: Path) -> None:
    model = tiny_llava(tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.get_model().initialize_vision_modules(arguments(Path(model.config.mm_vision_tower)))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_initialize_vision_modules_refuses_another_layer_than_the_checkpoint_has(tmp_path: Path) -> None:
    model = tiny_llava(tmp_path)
    with pytest.raises(ValueError, match="select_layer=-1"):
        model.get_model().initialize_vision_modules(
            arguments(Path(model.config.mm_vision_tower), mm_vision_select_layer=-1)
        )
    with pytest.raises(ValueError, match="FSDP is not supported"):
        model.get_model().initialize_vision_modules(arguments(Path(model.config.mm_vision_tower)), fsdp=["full_shard"])


@pytest.mark.parametrize(
    ("own", "said", "message"),
    [
        ({}, {}, "--mm_projector_type mlp2x_gelu"),
        (
            {"mm_patch_merge_type": "spatial_unpad"},
            {"mm_projector_type": "mlp2x_gelu"},
            "--mm_patch_merge_type spatial_unpad",
        ),
        ({"s2": True, "s2_scales": "28,56", "mm_projector_type": "linear", "mm_hidden_size": 64}, {}, "--s2 True"),
    ],
)
def test_continuing_with_default_flags_names_the_flag_to_repeat(
    tmp_path: Path, own: dict[str, Any], said: dict[str, Any], message: str
) -> None:
    model = tiny_llava(tmp_path, **own)
    flags = ModelArguments(vision_tower=model.config.mm_vision_tower, mm_vision_select_layer=-2, **said)
    with pytest.raises(ValueError, match=message):
        model.get_model().initialize_vision_modules(flags)


def test_a_checkpoint_without_a_newline_may_get_one(tmp_path: Path) -> None:
    model = tiny_llava(tmp_path)
    asked = arguments(Path(model.config.mm_vision_tower), mm_patch_merge_type="spatial_unpad")
    model.get_model().initialize_vision_modules(asked)
    save_student(model, tmp_path / "saved")
    assert load_student(None, tmp_path / "saved").get_model().image_newline is not None


def projector_file(path: Path, **extra: Tensor) -> dict[str, Tensor]:
    shapes = {"0.weight": (HIDDEN_SIZE, VISION_WIDTH), "0.bias": (HIDDEN_SIZE,)}
    shapes |= {"2.weight": (HIDDEN_SIZE, HIDDEN_SIZE), "2.bias": (HIDDEN_SIZE,)}
    state = {f"model.mm_projector.{name}": torch.randn(shape) for name, shape in shapes.items()} | extra
    torch.save(state, path)
    return state


def test_initialize_vision_modules_loads_a_pretrained_projector(tmp_path: Path) -> None:
    file = tmp_path / "mm_projector.bin"
    state = projector_file(file)
    model = blind_model(tmp_path)
    tower = tiny_clip_folder(tmp_path)
    model.get_model().initialize_vision_modules(arguments(tower, pretrain_mm_mlp_adapter=str(file)))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    linear = blind_model(tmp_path)
    with pytest.raises(CheckpointError, match="but the projector 'linear' has"):
        linear.get_model().initialize_vision_modules(
            arguments(tower, pretrain_mm_mlp_adapter=str(file), mm_projector_type="linear")
        )


def test_initialize_vision_tokenizer_adds_rows_at_the_mean(tmp_path: Path) -> None:
    model, tokenizer = tiny_llava(tmp_path), tiny_tokenizer(tmp_path)
    rows = len(tokenizer)
    mean = model.get_input_embeddings().weight.detach().mean(dim=0)
    model.initialize_vision_tokenizer(arguments(None, mm_use_im_start_end=True, tune_mm_mlp_adapter=True), tokenizer)
    assert len(tokenizer) == rows + 2
    torch.testing.assert_close(model.get_input_embeddings().weight[rows:].detach(), mean.expand(2, -1))
    assert model.get_output_embeddings().weight.shape[0] == rows + 2
    assert model.get_input_embeddings().weight.requires_grad
    assert not model.get_output_embeddings().weight.requires_grad
    assert model.config.mm_use_im_start_end is True


@pytest.mark.parametrize("whole", [True, False])
def test_initialize_vision_tokenizer_takes_new_rows_from_stage_one(tmp_path: Path, whole: bool) -> None:
    model, tokenizer = tiny_llava(tmp_path), tiny_tokenizer(tmp_path)
    rows = len(tokenizer)
    file = tmp_path / "mm_projector.bin"
    table = torch.randn(rows + 2 if whole else 2, HIDDEN_SIZE)
    projector_file(file, **{"model.embed_tokens.weight": table})
    old = model.get_input_embeddings().weight.detach().clone()
    model.initialize_vision_tokenizer(
        arguments(None, mm_use_im_start_end=True, pretrain_mm_mlp_adapter=str(file)), tokenizer
    )
    weight = model.get_input_embeddings().weight.detach()
    assert torch.equal(weight[rows:], table[-2:])
    assert torch.equal(weight[:rows], old)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("linear", ["bias", "weight"]),
        (None, ["bias", "weight"]),
        ("mlp1x_gelu", ["0.bias", "0.weight"]),
        ("mlp3x_gelu", ["0.bias", "0.weight", "2.bias", "2.weight", "4.bias", "4.weight"]),
        ("identity", []),
    ],
)
def test_projectors_have_the_published_names(name: str | None, keys: list[str]) -> None:
    projector = build_vision_projector(SimpleNamespace(mm_projector_type=name, mm_hidden_size=4, hidden_size=4))
    assert sorted(projector.state_dict()) == keys
    assert projector(torch.zeros(1, 2, 4)).shape == (1, 2, 4)


def test_a_projector_with_residual_blocks_ends_with_them() -> None:
    config = SimpleNamespace(mm_projector_type="mlp2x_res2x_gelu", mm_hidden_size=4, hidden_size=6)
    projector = build_vision_projector(config)
    assert projector(torch.zeros(1, 2, 4)).shape == (1, 2, 6)
    assert {"3.pre_norm.weight", "4.proj.2.bias"} <= set(projector.state_dict())


def test_unknown_projectors_and_resamplers_are_refused() -> None:
    with pytest.raises(ValueError, match="mm_projector_type 'pooler' is not known"):
        build_vision_projector(SimpleNamespace(mm_projector_type="pooler", mm_hidden_size=4, hidden_size=4))
    assert isinstance(build_vision_resampler(SimpleNamespace(mm_resampler_type="identity")), IdentityMap)
    with pytest.raises(ValueError, match="mm_resampler_type 'qformer' is not supported"):
        build_vision_resampler(SimpleNamespace(mm_resampler_type="qformer"))
