"""ConvNeXt-XXL of the LAION-2B CLIP soup: the last stage's map, before the head's norm.

The network is transformers' own; published files name its tensors as timm does (`stages.2.blocks.7.gamma`), with
`visual.trunk.` in front when a whole open_clip model was saved, or as transformers does. All three are read.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextModel

from llava.model.multimodal_encoder.move_kd.teachers._weights import find_file, read_checkpoint, refuse, strict_load
from llava.model.multimodal_encoder.move_kd.teachers.base import (
    CLIP_MEAN,
    CLIP_STD,
    BuildContext,
    Defaults,
    FrozenTeacher,
    square_grid,
)
from llava.model.multimodal_encoder.move_kd.types import TeacherFeatures

FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")
TRUNK = "visual.trunk."
# Tensors of published files that are not the trunk: heads, and the text side of an open_clip model.
OTHER_PARTS = re.compile(
    r"head\.|norm_pre\.|visual\.head\.|transformer\.|text\.|token_embedding\.|positional_embedding$|ln_final\."
    r"|text_projection|logit_scale$|logit_bias$|attn_mask$|layernorm\.|classifier\."
)
RENAMES = (
    (r"^stem\.0\.", "embeddings.patch_embeddings."),
    (r"^stem\.1\.", "embeddings.layernorm."),
    (r"^stages\.(\d+)\.downsample\.", r"encoder.stages.\1.downsampling_layer."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.", r"encoder.stages.\1.layers.\2.dwconv."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.norm\.", r"encoder.stages.\1.layers.\2.layernorm."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc([12])\.", r"encoder.stages.\1.layers.\2.pwconv\3."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.(?:gamma|weight)$", r"encoder.stages.\1.layers.\2.layer_scale_parameter"),
)
XXL_DEPTHS, XXL_WIDTHS = (3, 4, 30, 3), (384, 768, 1536, 3072)


def trunk_tensors(checkpoint: Mapping[str, object]) -> dict[str, Tensor]:
    """The trunk's tensors under transformers' names. Wrappers `state_dict` and `model` are looked through."""
    for key in ("state_dict", "model"):
        inner = checkpoint.get(key)
        if isinstance(inner, Mapping):
            checkpoint = inner
    named = {re.sub(r"^(module\.|convnext\.)", "", str(key)): value for key, value in checkpoint.items()}
    trunk = {key.removeprefix(TRUNK): value for key, value in named.items() if key.startswith(TRUNK)}
    rest = {key: value for key, value in named.items() if not key.startswith(TRUNK) and not OTHER_PARTS.match(key)}
    trunk = {key: value for key, value in (trunk | rest).items() if not OTHER_PARTS.match(key)}
    return {_rename(key): value for key, value in trunk.items() if isinstance(value, Tensor)}


def _rename(key: str) -> str:
    for pattern, replacement in RENAMES:
        if re.match(pattern, key):
            return re.sub(pattern, replacement, key)
    return key


def config_from(state: Mapping[str, Tensor], where: str) -> ConvNextConfig:
    """Depths and widths as the tensors have them. Raises ValueError if a stage or the stem is not there at all."""
    layers = [re.match(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.dwconv\.weight", key) for key in state]
    found = [(int(match[1]), int(match[2])) for match in layers if match]
    stem = "embeddings.patch_embeddings.weight"
    stages = range(1 + max((stage for stage, _ in found), default=-1))
    depths = [1 + max((layer for at, layer in found if at == stage), default=-1) for stage in stages]
    needed = [f"encoder.stages.{stage}.layers.0.dwconv.weight" for stage in (stages or range(4))]
    refuse(where, missing=[key for key in (stem, *needed) if key not in state], unexpected=())
    widths = [state[key].shape[0] for key in needed]
    if tuple(widths) == XXL_WIDTHS:  # a file that lost its last blocks must not pass for a smaller network
        depths = [max(pair) for pair in zip(depths, XXL_DEPTHS, strict=True)]
    return ConvNextConfig(
        num_stages=len(depths),
        depths=depths,
        hidden_sizes=widths,
        patch_size=state[stem].shape[-1],
        layer_scale_init_value=1.0,  # so that every block has its scale, and a file without them is refused
    )


def build_trunk(state: Mapping[str, Tensor], eps: float | None, where: str) -> ConvNextModel:
    """ConvNextModel holding exactly `state`. eps: None takes 1e-5 for XXL's shape, else 1e-6, as published."""
    config = config_from(state, where)
    is_xxl = tuple(config.hidden_sizes or ()) == XXL_WIDTHS
    with torch.device("meta"):
        net = ConvNextModel(config)
    net.layernorm = nn.Identity()  # type: ignore[assignment]  # the norm of the pooled head, which teachers do not use
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps or (1e-5 if is_xxl else 1e-6)
    return strict_load(net, {key: tensor.float() for key, tensor in state.items()}, where=where)


class ConvNext(FrozenTeacher):
    defaults = Defaults(
        paths=("checkpoints/convnext", "laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup"),
        size=1024,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        licence="MIT",
    )
    options: ClassVar = {"eps": ""}
    version = 3
    stem = "embeddings.patch_embeddings"
    net: ConvNextModel

    def load(self, context: BuildContext) -> ConvNextModel:
        owner = f"teacher {self.name!r}"
        path: Path = find_file(self.path, FILES, owner)
        return build_trunk(trunk_tensors(read_checkpoint(path, owner)), self._eps(), f"{owner}: {path}")

    def _eps(self) -> float | None:
        try:
            return float(self.choices["eps"]) if self.choices["eps"] else None
        except ValueError:
            raise self.refuse(f"eps must be a number such as 1e-5, not {self.choices['eps']!r}") from None

    def layout(self) -> tuple[tuple[int, int], int]:
        config = self.net.config
        assert config.hidden_sizes is not None
        stride = config.patch_size * 2 ** (config.num_stages - 1)
        return square_grid(self.size, stride, self), config.hidden_sizes[-1]

    def encode(self, pixels: Tensor) -> TeacherFeatures:
        final = self.net.encoder(self.net.embeddings(pixels)).last_hidden_state  # (M, D, H, W)
        return TeacherFeatures(final.flatten(2).transpose(1, 2), self.grid)


TEACHER = ConvNext
