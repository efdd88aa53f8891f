"""The modules that make a language model see, as the inner model owns them: tower, projector, newline, resampler."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from llava.model.checkpoint_gather import copy_into, full_shape, is_partitioned
from llava.model.checkpoint_io import CheckpointError, read_tensors
from llava.model.checkpoint_names import NEWLINE, PROJECTOR, projector_names
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.vision_tower import TowerSettings, VisionTower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.multimodal_resampler.builder import build_vision_resampler
from llava.model.packing import PackConfig

# Read from the arguments as they are called there, written to the config under these keys.
RECORDED = {
    "vision_tower": "mm_vision_tower",
    "vision_tower_pretrained": "vision_tower_pretrained",
    "mm_vision_select_layer": "mm_vision_select_layer",
    "mm_vision_select_feature": "mm_vision_select_feature",
    "mm_patch_merge_type": "mm_patch_merge_type",
    "mm_projector_type": "mm_projector_type",
    "mm_resampler_type": "mm_resampler_type",
    "s2": "s2",
    "s2_scales": "s2_scales",
}
# What decides which modules are built, and what a config without the key means.
BUILT_BY = {"mm_projector_type": "linear", "mm_patch_merge_type": "flat", "s2": False}

# A mixin over any language model; checkers see what all of them are.
if TYPE_CHECKING:
    InnerModel = PreTrainedModel
else:
    InnerModel = object


class LlavaMetaModel(InnerModel):
    """Mixed in before a language model's inner model. Without `mm_vision_tower` in the config it stays blind."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.vision_tower: VisionTower | None = None
        self.mm_projector: nn.Module | None = None
        self.vision_resampler: nn.Module | None = None
        self.image_newline: nn.Parameter | None = None
        if getattr(config, "mm_vision_tower", None) is not None:
            # Weights come with the checkpoint, or from `complete`; see LlavaMetaForCausalLM.from_pretrained.
            self.vision_tower = build_vision_tower(config, delay_load=True)
            # A device map over several devices must not cut through the tower.
            self._no_split_modules = {*(self._no_split_modules or ()), "VisionModule"}
            self.vision_resampler = build_vision_resampler(config)
            self.mm_projector = build_vision_projector(config)
            self._build_newline()

    def _build_newline(self) -> None:
        if self.image_newline is None and PackConfig.of(self.config).has_newline:
            self.image_newline = nn.Parameter(torch.empty(self.config.hidden_size))
            self.reset_newline()

    @torch.no_grad()
    def reset_newline(self) -> None:
        """As large as a token's embedding: normal, with variance 1 / hidden size."""
        assert self.image_newline is not None
        values = torch.randn(self.config.hidden_size) * self.config.hidden_size**-0.5
        if not self.image_newline.is_meta:
            copy_into({NEWLINE: self.image_newline}, {NEWLINE: values})

    def get_vision_tower(self) -> VisionTower | None:
        return self.vision_tower

    def project(self, features: Tensor) -> Tensor:
        """(..., N, D) of the tower to (..., N, D) of the language model, in the projector's dtype."""
        assert self.mm_projector is not None
        weight = next(self.mm_projector.parameters(), None)
        if weight is not None and weight.device.type != "meta":  # meta: offloaded, its hook moves the features
            features = features.to(weight.device, weight.dtype)
        return self.mm_projector(features)

    def newline(self, features: Tensor) -> Tensor | None:
        """(D,), to stand between rows of projected features; None where the merge type uses none."""
        return None if self.image_newline is None else self.image_newline.to(features.device, features.dtype)

    def projector_parameters(self) -> Iterator[nn.Parameter]:
        """Projector, resampler and newline."""
        for module in (self.mm_projector, self.vision_resampler):
            if module is not None:
                yield from module.parameters()
        if self.image_newline is not None:
            yield self.image_newline

    def initialize_vision_modules(self, model_args: Any, fsdp: Any = None) -> None:
        """Give a language model its vision modules as training arguments want them, or keep those that it has.

        Writes what it used to the config. Experts are built if `config.moe` says so by then. The tower is loaded and
        frozen; projector and newline learn. `pretrain_mm_mlp_adapter` of the arguments fills the projector.
        Raises ValueError for arguments that contradict modules that are there already.
        """
        if fsdp:
            raise ValueError("FSDP is not supported; train with DeepSpeed ZeRO-2 or ZeRO-3 (--deepspeed)")
        given = {key: getattr(model_args, name, None) for name, key in RECORDED.items()}
        asked = {key: value for key, value in given.items() if value is not None}
        if self.mm_projector is not None:
            self._refuse_others(asked)
        self.config.update(asked)
        self._ensure_tower()
        self._ensure_projector()
        if path := getattr(model_args, "pretrain_mm_mlp_adapter", None):
            self.load_projector(path)

    def _refuse_others(self, asked: Mapping[str, Any]) -> None:
        """Raises ValueError for arguments by which the modules that are kept could not be built again. A newline may
        be added, but not taken away."""
        own = {key: getattr(self.config, key, None) or absent for key, absent in BUILT_BY.items()}
        changed = {key for key, value in own.items() if asked.get(key, value) != value}
        if self.image_newline is None or "unpad" in asked.get("mm_patch_merge_type", "unpad"):
            changed.discard("mm_patch_merge_type")
        if changed:
            key = min(changed)
            raise ValueError(
                f"the checkpoint's modules were built with {key} {own[key]}, but the arguments ask for {asked[key]} "
                f"(which may be the default); pass --{key} {own[key]}"
            )

    def _ensure_tower(self) -> None:
        if self.vision_tower is None:
            self.vision_tower = build_vision_tower(self.config, delay_load=True).to(self.device, self.dtype)
            self.vision_resampler = build_vision_resampler(self.config)
        elif self.vision_tower.settings != TowerSettings.of(self.config):
            raise ValueError(
                f"the checkpoint's vision tower was built with {self.vision_tower.settings}, but the arguments ask for "
                f"{TowerSettings.of(self.config)}; pass the checkpoint's own values, or load it with the others"
            )
        self.vision_tower.load_model()
        self.config.mm_hidden_size = self.vision_tower.hidden_size

    def _ensure_projector(self) -> None:
        self.config.use_mm_proj = True
        if self.mm_projector is None:
            self.mm_projector = build_vision_projector(self.config).to(self.device, self.dtype)
        self._build_newline()
        for parameter in self.projector_parameters():
            parameter.requires_grad_(True)

    def load_projector(self, path: str) -> None:
        """Fill the projector (and the newline, if it is in there) from an mm_projector.bin.

        Raises CheckpointError if its tensors are not those of the projector.
        """
        assert self.mm_projector is not None
        state = projector_names(read_tensors(Path(path)))
        targets = {PROJECTOR + name: parameter for name, parameter in self.mm_projector.named_parameters()}
        if self.image_newline is not None and NEWLINE in state:
            targets[NEWLINE] = self.image_newline
        found = {name: tensor for name, tensor in state.items() if name.startswith(PROJECTOR) or name in targets}
        if found.keys() != targets.keys():
            raise CheckpointError(
                f"{path} holds {sorted(found)}, but the projector {self.config.mm_projector_type!r} has "
                f"{sorted(targets)}; pass the mm_projector_type that the file was trained with"
            )
        copy_into(targets, found)


def load_new_embeddings(embeddings: nn.Module, path: str, first: int) -> None:
    """Fill the rows from `first` on of an embedding table (`embeddings.weight`) from the `embed_tokens` in an
    mm_projector.bin: the whole table, or the new rows alone. Raises CheckpointError if it holds neither."""
    tables = [tensor for name, tensor in read_tensors(Path(path)).items() if name.endswith("embed_tokens.weight")]
    weight = embeddings.get_parameter("weight")
    rows = full_shape(weight)[0]
    if not tables or len(tables[0]) not in (rows, rows - first):
        found = f"a table of {len(tables[0])} rows" if tables else "no embed_tokens.weight"
        raise CheckpointError(f"{path} has {found}; needed are {rows}, or the {rows - first} rows of the new tokens")
    with whole(weight) as table:
        table[first:] = tables[0][first - rows :].to(table.dtype)


@contextmanager
def whole(parameter: nn.Parameter) -> Iterator[Tensor]:
    """A parameter's whole tensor, to write to. Under ZeRO-3 every rank must ask, and rank 0's values count."""
    if not is_partitioned(parameter):
        yield parameter.data
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        yield parameter.data
