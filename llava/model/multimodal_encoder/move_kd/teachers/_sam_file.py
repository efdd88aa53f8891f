"""SAM's image encoder from the file its authors publish (`sam_vit_l_0b3195.pth`), under transformers' names.

The file has no configuration: everything is read from the shapes of its tensors.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import SamVisionConfig, SamVisionModel

from llava.model.multimodal_encoder.move_kd.teachers._weights import read_checkpoint, refuse, strict_load

ENCODER = "image_encoder."
OTHER_PARTS = ("prompt_encoder.", "mask_decoder.", "pixel_mean", "pixel_std")
DEPTHS = {768: 12, 1024: 24, 1280: 32}  # B, L, H: a file that lost its last blocks must not pass for a smaller one
RENAMES = (
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"layers.\1.layer_norm\2."),
    (r"^blocks\.", "layers."),
    (r"^neck\.0\.", "neck.conv1."),
    (r"^neck\.1\.", "neck.layer_norm1."),
    (r"^neck\.2\.", "neck.conv2."),
    (r"^neck\.3\.", "neck.layer_norm2."),
)
NEEDED = (
    "pos_embed",
    "patch_embed.proj.weight",
    "neck.0.weight",
    "blocks.0.attn.rel_pos_h",
    "blocks.0.mlp.lin1.weight",
)


def original_file(location: str) -> Path | None:
    """The file at `location`, itself or the only one in a folder without a config.json; None for anything else."""
    path = Path(location).expanduser()
    if path.is_file():
        return path
    inside = sorted(path.glob("*.pth")) if path.is_dir() and not (path / "config.json").exists() else []
    return inside[0] if len(inside) == 1 else None


def load_original(path: Path, owner: str) -> SamVisionModel:
    """Raises ValueError naming tensors that are missing, not known or of another shape."""
    where = f"{owner}: {path}"
    content = read_checkpoint(path, owner)
    state = {key.removeprefix(ENCODER): value.float() for key, value in content.items() if key.startswith(ENCODER)}
    strange = [key for key in content if not key.startswith((ENCODER, *OTHER_PARTS))]
    refuse(where, missing=[ENCODER + key for key in NEEDED if key not in state], unexpected=strange)
    with torch.device("meta"):
        net = SamVisionModel(config_from(state))
    return strict_load(net, {f"vision_encoder.{_rename(key)}": value for key, value in state.items()}, where=where)


def config_from(state: Mapping[str, Tensor]) -> SamVisionConfig:
    """Relative positions tell the head's width, the window and which blocks see everything."""
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    grid = state["pos_embed"].shape[1]
    spans = {int(match[1]): (len(value) + 1) // 2 for key, value in state.items()
             if (match := re.match(r"blocks\.(\d+)\.attn\.rel_pos_h$", key))}  # fmt: skip
    blocks = [int(match[1]) for key in state if (match := re.match(r"blocks\.(\d+)\.", key))]
    return SamVisionConfig(
        hidden_size=width,
        output_channels=state["neck.0.weight"].shape[0],
        num_hidden_layers=max(1 + max(blocks), DEPTHS.get(width, 0)),
        num_attention_heads=width // state["blocks.0.attn.rel_pos_h"].shape[1],
        image_size=grid * patch,
        patch_size=patch,
        window_size=min(spans.values()),
        global_attn_indexes=sorted(block for block, span in spans.items() if span == grid),
        mlp_dim=state["blocks.0.mlp.lin1.weight"].shape[0],
    )


def _rename(key: str) -> str:
    for pattern, replacement in RENAMES:
        if re.match(pattern, key):
            return re.sub(pattern, replacement, key)
    return key
