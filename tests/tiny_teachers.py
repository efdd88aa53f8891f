"""Teacher checkpoints of a few thousand random weights, on disk in the formats they are published in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Pix2StructConfig,
    Pix2StructForConditionalGeneration,
    RadioConfig,
    RadioModel,
    SamConfig,
    SamModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava.model.multimodal_encoder.move_kd.teachers.eva02 import EvaBackbone, EvaConfig, rotary_table

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def randomize(module: nn.Module) -> nn.Module:
    """Every parameter away from the zeros and ones of its initialization, so that a lost tensor shows."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + 0.1)
    return module.eval()


def eva_state(rope: bool = True) -> dict[str, Tensor]:
    """A detector's tensors: backbone, feature pyramid and a head. Windows of 2 tokens at 64 px, block 1 global."""
    config = EvaConfig(32, 3, 4, 16, 20, 2, frozenset({1}), 17)
    state = {f"backbone.net.{key}": value for key, value in randomize(EvaBackbone(config, 64)).state_dict().items()}
    if rope:
        tables = {
            "rope_win": 2,
            "rope_glb": 4,
            "blocks.0.attn.rope": 2,
            "blocks.1.attn.rope": 4,
            "blocks.2.attn.rope": 2,
        }
        for name, side in tables.items():
            cos, sin = rotary_table(side, 8, 16)
            state[f"backbone.net.{name}.freqs_cos"], state[f"backbone.net.{name}.freqs_sin"] = cos, sin
    state["backbone.simfp_4.0.weight"] = torch.zeros(4, 4)
    state["roi_heads.box_head.0.fc1.weight"] = torch.zeros(4, 4)
    return state


def make_eva(folder: Path) -> str:
    path = folder / "eva02_L_coco_det_sys_o365.pth"
    torch.save({"ema_state": eva_state(), "iteration": 3}, path)
    return str(path)


def convnext_state(prefix: str = "", scale: str = "gamma") -> dict[str, Tensor]:
    """A trunk of widths 8, 8, 16, 16 under timm's names."""
    config = ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 2, 1])
    state = randomize(ConvNextModel(config)).state_dict()
    back = {"dwconv": "conv_dw", "layernorm": "norm", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2"}
    named = {}
    for key, value in state.items():
        if key.startswith("layernorm."):
            named[key.replace("layernorm", "head.norm")] = value
            continue
        key = key.replace("embeddings.patch_embeddings", "stem.0").replace("embeddings.layernorm", "stem.1")
        key = key.removeprefix("encoder.").replace(".layers.", ".blocks.").replace("downsampling_layer", "downsample")
        if ".blocks." in key:
            key = key.replace("layer_scale_parameter", scale)
            for ours, theirs in back.items():
                key = key.replace(f".{ours}.", f".{theirs}.")
        named[key] = value
    return {prefix + key: value.clone() for key, value in named.items()}


def make_convnext(folder: Path) -> str:
    state = convnext_state("visual.trunk.")
    state |= {
        "visual.head.proj.weight": torch.zeros(4, 16),
        "logit_scale": torch.zeros(()),
        "text_projection": torch.zeros(4),
    }
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    return str(folder)


def make_clip(folder: Path) -> str:
    vision = {**SMALL, "intermediate_size": 64, "image_size": 28, "patch_size": 7, "num_hidden_layers": 3}
    text = {**SMALL, "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 8}
    randomize(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))).save_pretrained(folder)
    return str(folder)


def make_clip_vision(folder: Path) -> str:
    config = CLIPVisionConfig(**{**SMALL, "num_hidden_layers": 3}, intermediate_size=64, image_size=28, patch_size=7)
    randomize(CLIPVisionModel(config)).save_pretrained(folder)
    return str(folder)


def make_sam(folder: Path) -> str:
    vision = {**SMALL, "image_size": 64, "patch_size": 16, "output_channels": 16, "window_size": 2, "mlp_dim": 64}
    vision |= {"global_attn_indexes": [1]}
    prompt = {"hidden_size": 16, "image_size": 64, "image_embedding_size": 4, "mask_input_channels": 4}
    mask = {
        "hidden_size": 16,
        "mlp_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    }
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=mask)
    randomize(SamModel(config)).save_pretrained(folder)
    return str(folder)


def make_pix2struct(folder: Path) -> str:
    vision = {**SMALL, "patch_embed_hidden_size": 48, "d_ff": 32, "d_kv": 8, "seq_len": 64}
    text = {"vocab_size": 40, "hidden_size": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = Pix2StructForConditionalGeneration(Pix2StructConfig(text_config=text, vision_config=vision))
    randomize(model).save_pretrained(folder)
    return str(folder)


def make_dinov2(folder: Path) -> str:
    randomize(Dinov2Model(Dinov2Config(**SMALL, image_size=28, patch_size=7))).save_pretrained(folder)
    return str(folder)


def make_dinov2_registers(folder: Path) -> str:
    config = Dinov2WithRegistersConfig(**SMALL, image_size=28, patch_size=7, num_register_tokens=3)
    randomize(Dinov2WithRegistersModel(config)).save_pretrained(folder)
    return str(folder)


def make_dinov3(folder: Path) -> str:
    config = DINOv3ViTConfig(**SMALL, intermediate_size=64, image_size=28, patch_size=7, num_register_tokens=2)
    randomize(DINOv3ViTModel(config)).save_pretrained(folder)
    return str(folder)


def make_siglip(folder: Path) -> str:
    config = SiglipVisionConfig(**SMALL, intermediate_size=64, image_size=28, patch_size=7)
    randomize(SiglipVisionModel(config)).save_pretrained(folder)
    return str(folder)


def make_siglip_naflex(folder: Path) -> str:
    config = Siglip2VisionConfig(**SMALL, intermediate_size=64, num_patches=16, patch_size=7)
    randomize(Siglip2VisionModel(config)).save_pretrained(folder)
    return str(folder)


def make_radio(folder: Path) -> str:
    config = RadioConfig(**SMALL, patch_size=7, image_size=28, max_img_size=56, num_cls_tokens=2, num_registers=1)
    randomize(RadioModel(config)).save_pretrained(folder)
    return str(folder)


def make_single(folder: Path) -> str:
    """One file in our own naming of a state dict, for formats that have no folder."""
    save_file(convnext_state(), folder / "model.safetensors")
    return str(folder / "model.safetensors")


# name of the case -> (spec without its path, maker, expected grid side and width, expects a class token)
CASES: dict[str, tuple[str, Callable[[Path], str], int, int, bool]] = {
    "eva": ("eva:size=64", make_eva, 4, 32, False),
    "convnext": ("convnext:size=64", make_convnext, 2, 16, False),
    "clip": ("clip", make_clip, 4, 32, True),
    "clip_vision": ("clip", make_clip_vision, 4, 32, True),
    "sam": ("sam:size=64", make_sam, 4, 16, False),
    "pix2struct": ("pix2struct:size=40,max_patches=41,grid=4", make_pix2struct, 4, 32, False),
    "dinov2": ("dinov2:size=28", make_dinov2, 4, 32, True),
    "dinov2_registers": ("dinov2:size=28", make_dinov2_registers, 4, 32, True),
    "dinov3": ("dinov3:size=28", make_dinov3, 4, 32, True),
    "siglip2": ("siglip2", make_siglip, 4, 32, False),
    "siglip2_naflex": ("siglip2", make_siglip_naflex, 4, 32, False),
    "radio": ("radio:size=28", make_radio, 4, 32, True),
}


def with_path(spec: str, path: str) -> str:
    return f"{spec},path={path}" if ":" in spec else f"{spec}:path={path}"


def make_case(name: str, folder: Path) -> str:
    """A complete spec for a checkpoint written below `folder`."""
    spec, maker, *_ = CASES[name]
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    return with_path(spec, maker(target))
