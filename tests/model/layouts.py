"""Tiny checkpoints on disk, file by file and name by name as the originals were published."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.checkpoint_io import write_safetensors
from llava.model.checkpoint_names import publish_experts
from tests.tiny import (
    HIDDEN_SIZE,
    NUM_PATCHES,
    PINPOINTS,
    VISION_WIDTH,
    tiny_images,
    tiny_llava,
    tiny_siglip_folder,
    tiny_tokenizer_folder,
)

TOWER = "model.vision_tower."
MOE = {
    "moe_encoder": True,
    "moe_encoder_dense": False,
    "moe_encoder_lora_rank": 4,
    "moe_encoder_lora_alpha": 1,
    "moe_encoder_num_experts": 3,
}


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    """(1, L, V) float32 for one picture in a fixed prompt."""
    torch.manual_seed(7)
    image = tiny_images(1)
    ids = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 8, 13, 21]])
    return model(input_ids=ids, images=image.to(model.dtype)).logits.float()


def settings_of(model: PreTrainedModel, **changes: Any) -> dict[str, Any]:
    """The model's config.json as transformers 4.37 wrote it: rope_theta and torch_dtype on the top level."""
    raw = json.loads(model.config.to_json_string())
    raw["rope_theta"] = raw.pop("rope_parameters")["rope_theta"]
    raw["torch_dtype"] = "float32"
    raw.pop("dtype", None)
    return raw | {"architectures": [type(model).__name__], "transformers_version": "4.37.2"} | changes


def write_settings(folder: Path, raw: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw, indent=2))


def write_bin_shards(folder: Path, state: Mapping[str, Tensor], shards: int = 2) -> None:
    names = list(state)
    weight_map = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = {name: state[name].clone() for name in names[number::shards]}
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def llava_15(directory: Path, **overrides: Any) -> tuple[Path, PreTrainedModel]:
    """llava-v1.5-7b: `llava`, two .bin shards with rotary tables and without the tower, mm_projector.bin beside."""
    model = tiny_llava(directory, **overrides)
    folder = tiny_tokenizer_folder(directory / "llava-v1.5-tiny")
    write_settings(folder, settings_of(model, model_type="llava", max_length=512, unfreeze_mm_vision_tower=False))
    (folder / "generation_config.json").write_text(json.dumps({"max_length": 512, "temperature": 0.9, "top_p": 0.6}))
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(TOWER)}
    state |= {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(8) for layer in range(2)}
    write_bin_shards(folder, state)
    torch.save({n: t for n, t in state.items() if "mm_projector" in n}, folder / "mm_projector.bin")
    return folder, model


def llava_16(directory: Path, backbone: str = "llama", model_type: str = "llava") -> tuple[Path, PreTrainedModel]:
    """llava-v1.6: safetensors shards with tower, position ids and image_newline; anyres."""
    model = tiny_llava(
        directory,
        backbone,
        image_aspect_ratio="anyres",
        mm_patch_merge_type="spatial_unpad",
        image_grid_pinpoints=PINPOINTS,
        unfreeze_mm_vision_tower=True,
        mm_vision_tower_lr=2e-6,
        tokenizer_model_max_length=512,
        tokenizer_padding_side="right",
    )
    folder = tiny_tokenizer_folder(directory / "llava-v1.6-tiny")
    write_settings(folder, settings_of(model, model_type=model_type))
    position_ids = torch.arange(NUM_PATCHES + 1)[None]
    name = TOWER + "vision_tower.vision_model.embeddings.position_ids"
    write_safetensors(dict(model.state_dict()) | {name: position_ids}, folder, max_shard_size=100_000)
    return folder, model


def onevision(directory: Path) -> tuple[Path, PreTrainedModel]:
    """llava-onevision-qwen2: `llava_qwen` on SigLIP, whose own folder has one more layer and a pooling head."""
    tower = tiny_siglip_folder(directory)
    model = tiny_llava(
        directory, "qwen", tower=tower, image_aspect_ratio="anyres_max_9", mm_patch_merge_type="spatial_unpad"
    )
    folder = tiny_tokenizer_folder(directory / "llava-onevision-tiny")
    write_settings(folder, settings_of(model, image_grid_pinpoints="(1x1),...,(3x3)", mm_newline_position="grid"))
    write_safetensors(dict(model.state_dict()), folder, max_shard_size=100_000)
    return folder, model


def tiny_move_kd(directory: Path, moe: Mapping[str, Any] | None = None, **overrides: Any) -> PreTrainedModel:
    """A MoVE-KD student whose experts differ from each other and from nothing."""
    from llava.model import MoVELlavaLlamaConfig, MoVELlavaLlamaForCausalLM

    plain = tiny_llava(directory, **overrides)
    raw = plain.config.to_dict() | {"moe": dict(moe or MOE), "kd": {"kd_mode": True}}
    raw.pop("model_type")
    model = MoVELlavaLlamaForCausalLM(MoVELlavaLlamaConfig(**raw))
    model.get_vision_tower().load_model()
    with torch.no_grad():
        for parameter in model.parts()["mole"].values():
            parameter.normal_()
    return model.eval()


def move_kd(directory: Path, **overrides: Any) -> tuple[Path, PreTrainedModel]:
    """MoVE-KD-7b-v1.0: `move_llava_llama`, single experts, adapters left over, no 'llava' in the folder's name."""
    model = tiny_move_kd(directory, **overrides)
    folder = tiny_tokenizer_folder(directory / "MoVE-KD-tiny")
    write_settings(folder, settings_of(model))
    state = publish_experts(dict(model.state_dict()))
    for teacher in ("eva", "convnext"):
        state[f"{teacher}_adapter_1.weight"] = torch.randn(VISION_WIDTH, 24)
        state[f"{teacher}_adapter_1.bias"] = torch.randn(VISION_WIDTH)
        state[f"{teacher}_adapter_2.weight"] = torch.randn(NUM_PATCHES, 36)
        state[f"{teacher}_adapter_2.bias"] = torch.randn(NUM_PATCHES)
    write_safetensors(state, folder, max_shard_size=100_000)
    return folder, model


def hf_native(directory: Path, next_version: bool = False) -> tuple[Path, Any]:
    """A folder that transformers' own LLaVA class has saved, with its image processor."""
    from transformers import (
        CLIPImageProcessorPil,
        LlamaConfig,
        LlavaForConditionalGeneration,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
    )
    from transformers import LlavaConfig as HfLlavaConfig

    from tests.tiny import LANGUAGE_SETTINGS, tiny_clip_config

    common = {
        "text_config": LlamaConfig(**LANGUAGE_SETTINGS),
        "vision_config": tiny_clip_config(),
        "image_token_index": 899,
        "vision_feature_layer": -2,
    }
    if next_version:
        config = LlavaNextConfig(**common, image_grid_pinpoints=PINPOINTS)
        model = LlavaNextForConditionalGeneration(config).eval()
    else:
        model = LlavaForConditionalGeneration(HfLlavaConfig(**common)).eval()
    folder = tiny_tokenizer_folder(directory / "native-tiny")
    model.save_pretrained(folder)
    size = {"height": 28, "width": 28}
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=size).save_pretrained(folder)
    assert model.config.text_config.hidden_size == HIDDEN_SIZE
    return folder, model
