"""Every published checkpoint layout loads to the same numbers as the model it was made from."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import (
    LlavaLlamaForCausalLM,
    LlavaMistralForCausalLM,
    LlavaQwenForCausalLM,
    MoVELlavaLlamaForCausalLM,
)
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import gather_state_dict, load_parts, save_parts, save_student
from llava.model.checkpoint_io import CheckpointError, read_state_dict, write_safetensors
from tests.model import layouts
from tests.model.test_language_models import OTHERS, other_llava
from tests.tiny import tiny_clip_folder, tiny_images, tiny_lm_folder, tiny_tokenizer_folder


def load(folder: Path, **options: object) -> tuple:
    return load_pretrained_model(str(folder), None, "any-name", torch_dtype="float32", device_map="auto", **options)


def test_llava_15_without_tower_tensors_takes_the_tower_that_it_names(tmp_path: Path) -> None:
    folder, made = layouts.llava_15(tmp_path)
    tokenizer, model, image_processor, context_len = load(folder)
    assert type(model) is LlavaLlamaForCausalLM
    assert model.config.model_type == "llava_llama"
    assert torch.equal(layouts.logits(model), layouts.logits(made))
    assert context_len == 512
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    assert image_processor(Image.new("RGB", (40, 30)), return_tensors="pt")["pixel_values"].shape == (1, 3, 28, 28)
    assert model.generation_config.max_length == 512
    assert not model.generation_config.do_sample
    assert model.generation_config.temperature is None
    assert not model.training
    assert model.device.type == "cpu"


@pytest.mark.parametrize(
    ("backbone", "model_type", "model_class"),
    [
        ("llama", "llava", LlavaLlamaForCausalLM),
        ("llama", "llava_llama", LlavaLlamaForCausalLM),
        ("mistral", "llava_mistral", LlavaMistralForCausalLM),
        ("qwen", "llava_qwen", LlavaQwenForCausalLM),
    ],
)
def test_llava_16_uses_the_tower_in_the_checkpoint(
    tmp_path: Path, backbone: str, model_type: str, model_class: type
) -> None:
    folder, made = layouts.llava_16(tmp_path, backbone, model_type)
    expected = layouts.logits(made)
    tiny_clip_folder(tmp_path)  # other weights now lie where mm_vision_tower points
    model = load(folder)[1]
    assert type(model) is model_class
    assert torch.equal(layouts.logits(model), expected)
    assert torch.equal(model.model.image_newline, made.model.image_newline)
    assert model.config.image_grid_pinpoints == made.config.image_grid_pinpoints


def test_onevision_loads_on_siglip(tmp_path: Path) -> None:
    folder, made = layouts.onevision(tmp_path)
    _, model, image_processor, _ = load(folder)
    assert type(model) is LlavaQwenForCausalLM
    assert torch.equal(layouts.logits(model), layouts.logits(made))
    assert image_processor.crop_size == {"height": 28, "width": 28}


def test_siglip_tensors_come_from_its_own_folder_if_the_checkpoint_has_none(tmp_path: Path) -> None:
    folder, made = layouts.onevision(tmp_path)
    state = {name: tensor for name, tensor in read_state_dict(folder).items() if not name.startswith(layouts.TOWER)}
    write_safetensors(state, folder)
    assert torch.equal(layouts.logits(load(folder)[1]), layouts.logits(made))


def test_move_kd_loads_under_any_folder_name(tmp_path: Path) -> None:
    folder, made = layouts.move_kd(tmp_path)
    assert any("moe_down.2.lora_A.weight" in name for name in read_state_dict(folder))
    _, model, image_processor, _ = load(folder)
    assert type(model) is MoVELlavaLlamaForCausalLM
    assert torch.equal(layouts.logits(model), layouts.logits(made))
    assert model.config.moe["moe_encoder_lora_rank"] == 4
    assert image_processor is not None


def test_move_kd_without_one_expert_is_refused(tmp_path: Path) -> None:
    folder, _ = layouts.move_kd(tmp_path)
    state = read_state_dict(folder)
    lost = next(name for name in state if "layers.1.mlp.moe_up.1.lora_B.weight" in name)
    state.pop(lost)
    write_safetensors(state, folder)
    with pytest.raises(CheckpointError, match=lost.replace(".", r"\.")):
        load(folder)


def test_a_saved_move_kd_state_without_experts_is_refused(tmp_path: Path) -> None:
    folder, _ = layouts.move_kd(tmp_path)
    state = {name: tensor for name, tensor in read_state_dict(folder).items() if ".moe_" not in name}
    write_safetensors(state, folder)
    with pytest.raises(CheckpointError, match=r"moe_down\.reduce_weight"):
        load(folder)


def native_logits(model: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    ids = [1, 5, *[899] * 16, 8, 13, 21]
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), pixel_values=image).logits


def test_a_folder_of_transformers_own_llava_loads(tmp_path: Path) -> None:
    folder, native = layouts.hf_native(tmp_path)
    _, model, image_processor, _ = load(folder)
    assert type(model) is LlavaLlamaForCausalLM
    image = tiny_images(1)
    with torch.no_grad():
        ours = model(input_ids=torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 8, 13, 21]]), images=image).logits
    torch.testing.assert_close(ours, native_logits(native, image), rtol=1e-4, atol=1e-5)
    assert image_processor.crop_size["height"] == 28


def test_a_folder_of_transformers_own_llava_next_loads(tmp_path: Path) -> None:
    folder, native = layouts.hf_native(tmp_path, next_version=True)
    _, model, _, _ = load(folder)
    assert model.config.image_aspect_ratio == "anyres"
    tiles, size = torch.randn(1, 5, 3, 28, 28), (50, 56)  # width, height
    ids = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 8]])
    with torch.no_grad():
        ours = model(input_ids=ids, images=list(tiles), image_sizes=[size]).logits
        count = ours.shape[1] - 3
        expanded = torch.tensor([[1, 5, *[899] * count, 8]])
        sizes = torch.tensor([[size[1], size[0]]])
        theirs = native(input_ids=expanded, pixel_values=tiles, image_sizes=sizes).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_plain_language_model_loads_without_image_processor(tmp_path: Path) -> None:
    folder = tiny_lm_folder(tmp_path)
    _, model, image_processor, context_len = load(folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert image_processor is None
    assert context_len == 512


@pytest.mark.parametrize("name", sorted(OTHERS))
@pytest.mark.parametrize("with_tower", [True, False])
def test_other_backbones_load_under_the_names_of_their_files(tmp_path: Path, name: str, with_tower: bool) -> None:
    made = other_llava(name, tmp_path, mm_use_im_patch_token=False)
    save_student(made, tmp_path / "out")
    tiny_tokenizer_folder(tmp_path / "out")
    state = read_state_dict(tmp_path / "out")
    if name == "Mixtral":
        assert state["model.layers.0.block_sparse_moe.experts.3.w1.weight"].ndim == 2
    if not with_tower:
        write_safetensors({n: t for n, t in state.items() if ".vision_tower." not in n}, tmp_path / "out")
    model = load(tmp_path / "out")[1]
    assert type(model) is type(made)
    assert torch.equal(layouts.logits(model), layouts.logits(made))
    parts = {part: gather_state_dict(tensors) for part, tensors in made.parts().items()}
    save_parts(tmp_path / "parts", projector=parts["projector"])
    assert load_parts(model, tmp_path / "parts") == ["projector"]


def test_keys_that_nobody_knows_survive_loading_and_saving(tmp_path: Path) -> None:
    folder, _ = layouts.llava_15(tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"mm_future_key": [1, {"a": None}], "image_token_index": 7}))
    save_student(load(folder)[1], tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["mm_future_key"] == [1, {"a": None}]
    assert again["image_token_index"] == 7
    lost = raw.keys() - again.keys() - {"max_length", "rope_scaling"}
    assert not lost
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text())["max_length"] == 512
