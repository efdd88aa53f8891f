"""What all vision towers share: LLaVA's public surface, and `encode`, which everything else here uses.

A tower is built with its modules in place and random weights. from_pretrained fills them from the checkpoint;
`load_model` copies them from the encoder that `vision_tower_name` names. What it copies is frozen until a training
stage says otherwise, and a tower with nothing to train runs without recording gradients.

Shapes: T tiles, N patches, D width, S image side.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, SiglipVisionConfig

from llava.model.checkpoint_gather import copy_into
from llava.model.checkpoint_io import read_state_dict
from llava.model.checkpoint_names import CLIP_MOLE, VISION_MODEL, tower_name
from llava.model.multimodal_encoder.move_kd.mole import MoLE
from llava.model.multimodal_encoder.move_kd.student import expert_parameters
from llava.model.multimodal_encoder.move_kd.types import StudentFeatures
from llava.model.multimodal_encoder.vision_transformer import VisionConfig, VisionModule, VisionTransformer, side

TOWER_PREFIX = VISION_MODEL.removesuffix("vision_tower.vision_model.")  # where a model has its tower


@dataclass(frozen=True)
class TowerSettings:
    """select_layer: index into the hidden states, negative from the end. select_feature: `patch` or `cls_patch`,
    or either behind `slicefour_` / `slice_m25811_f6_`, which join four or five layers. moe: the dict of config.moe.
    """

    select_layer: int = -2
    select_feature: str = "patch"
    s2_scales: tuple[int, ...] = (336, 672, 1008)
    moe: dict[str, Any] | None = None

    @classmethod
    def of(cls, args: Any) -> "TowerSettings":
        """From a LLaVA config or from training arguments; keys that are absent take LLaVA's defaults."""
        moe = getattr(args, "moe", None)
        scales = getattr(args, "s2_scales", None) or "336,672,1008"
        return cls(
            select_layer=getattr(args, "mm_vision_select_layer", -2),
            select_feature=getattr(args, "mm_vision_select_feature", None) or "patch",
            s2_scales=tuple(sorted(int(scale) for scale in str(scales).split(","))),
            moe=moe if moe and moe.get("moe_encoder") else None,
        )


class VisionTower(nn.Module):
    """Base of the towers; a subclass names its classes, says which layers it reads and how it splits features.
    num_run_layers: how many layers run, from the first on."""

    config_class: ClassVar[type[CLIPVisionConfig] | type[SiglipVisionConfig]]
    has_class_token: ClassVar[bool]
    num_run_layers: int

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False) -> None:
        super().__init__()
        self.is_loaded = False
        self.solos = 0
        self.vision_tower_name = vision_tower
        self.settings = TowerSettings.of(args)
        self.select_layer = self.settings.select_layer
        self.select_feature = self.settings.select_feature
        config = self._read_config(vision_tower)
        vision_model = VisionTransformer(config, self._num_layers(config), self.has_class_token)
        self.vision_tower = VisionModule(config, vision_model)
        if not delay_load:
            self.load_model()

    def _read_config(self, vision_tower: str) -> VisionConfig:
        try:
            settings, _ = self.config_class.get_config_dict(vision_tower)
        except OSError as error:
            raise ValueError(
                f"vision tower {vision_tower!r} cannot be read ({str(error).splitlines()[0]}). It must be a vision "
                f"encoder's directory here (from {Path.cwd()}) or a hub repository that can be reached. Download it "
                "and name its directory: with --vision_tower in training, else edit mm_vision_tower in config.json, or "
                "pass overwrite_config={'mm_vision_tower': DIRECTORY}."
            ) from error
        vision = settings.get("vision_config", settings)
        if vision.get("model_type") == CLIP_MOLE:  # CLIP's but for the experts, of which the model's config speaks
            return self.config_class.from_dict(vision | {"model_type": self.config_class.model_type})
        return self.config_class.from_pretrained(vision_tower)

    def _num_layers(self, config: VisionConfig) -> int:
        return config.num_hidden_layers

    def _processor(self) -> Any:
        raise NotImplementedError

    def encode(self, images: Tensor, with_cls_attention: bool = False) -> StudentFeatures:
        """Features of T tiles in the tower's dtype. images: (T, 3, S, S) of any floating dtype.

        `with_cls_attention` fills `cls_attention`. Raises ValueError where the encoder has no class token.
        """
        raise NotImplementedError

    def show_solos(self, count: int) -> None:
        """While training, also give what the first `count` experts see, each alone: that many more passes.

        Raises ValueError if there are fewer experts.
        """
        experts = [module for module in self.modules() if isinstance(module, MoLE)]
        if count > min((module.config.experts for module in experts), default=0):
            found = experts[0].config.experts if experts else "no"
            raise ValueError(
                f"{count} teachers need as many experts of their own; the vision tower has {found}. "
                "Set --moe_encoder_num_experts, or leave out --kd_experts own."
            )
        self.solos = count
        for module in experts:
            module.solos = count

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """(T, 3, S, S) to (T, N', D) in the images' dtype; a list of (3, S, S) to a list of (1, N', D)."""
        if isinstance(images, Tensor):
            return self.encode(images).features.to(images.dtype)
        features = self.encode(torch.stack(list(images))).features
        return [feature[None].to(image.dtype) for feature, image in zip(features, images, strict=True)]

    def _hidden_states(self, images: Tensor, keep: set[int], num_layers: int) -> dict[int, Tensor]:
        """The hidden states in `keep`; gradients are recorded only if something in the tower learns."""
        device = self.device
        # Offloaded weights are on `meta`; accelerate's hooks then move the images where they belong.
        images = images.to(dtype=self.dtype) if device.type == "meta" else images.to(device, self.dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.is_trainable):
            states = self.vision_tower.vision_model(images, keep, num_layers)
        return {index: state for index, state in enumerate(states) if state is not None}

    def load_model(self, device_map: Any = None) -> None:
        """Copy the weights of the encoder `vision_tower_name`, unless they are loaded already, and freeze them.

        device_map: a device, or {"": device}, moves the tower there; "auto" or None leaves it where it is.
        Under ZeRO-3 every rank must call it. Raises ValueError if that encoder's checkpoint lacks a tensor.
        """
        if not self.is_loaded:
            targets = self.plain_parameters()
            copy_into(targets, self._pretrained(targets))
            self.mark_loaded()
        device = device_map.get("") if isinstance(device_map, dict) else device_map
        if device not in (None, "auto"):
            self.to(device)

    def _pretrained(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's own tensors, by the names in `targets`."""
        found = {tower_name(name): tensor for name, tensor in read_state_dict(self.vision_tower_name).items()}
        # An expert layer keeps the MLP that it replaced as `original_module`.
        sources = {name: f"{TOWER_PREFIX}{name.replace('.mlp.original_module.', '.mlp.')}" for name in targets}
        missing = [source.removeprefix(VISION_MODEL) for source in sources.values() if source not in found]
        offloaded = [name for name, target in targets.items() if target.is_meta]
        if missing:
            raise ValueError(
                f"{self.vision_tower_name} lacks {len(missing)} of the {len(targets)} tensors of a "
                f"{self.config.model_type}, such as {missing[:4]}; mm_vision_tower must name a vision encoder"
            )
        if offloaded:
            raise ValueError(f"the vision tower is offloaded ({offloaded[0]}); the device_map must leave it in memory")
        return {name: found[source] for name, source in sources.items()}

    def mark_loaded(self) -> None:
        """The weights are a pretrained encoder's: freeze them. Experts stay as they are."""
        self.is_loaded = True
        for parameter in self.plain_parameters().values():
            parameter.requires_grad_(False)

    def plain_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the encoder would have without experts, by their names in this module."""
        experts = self.expert_parameters()
        return {name: parameter for name, parameter in self.named_parameters() if name not in experts}

    def expert_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that mixture-of-LoRA-experts layers add, by their names in this module."""
        return expert_parameters(self)

    @property
    def is_trainable(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters())

    @cached_property
    def image_processor(self) -> Any:
        return self._processor()

    @property
    def config(self) -> VisionConfig:
        return self.vision_tower.config

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_tower.vision_model.embeddings.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.vision_tower.vision_model.embeddings.patch_embedding.weight.device

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def image_size(self) -> int:
        return side(self.config.image_size)

    @property
    def num_patches_per_side(self) -> int:
        return self.image_size // side(self.config.patch_size)

    @property
    def num_patches(self) -> int:
        return self.num_patches_per_side**2

    @property
    def dummy_feature(self) -> Tensor:
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)


def resolve_layers(settings: TowerSettings, num_layers: int) -> tuple[int, ...]:
    """Indices (0 to num_layers) of the hidden states that are joined into the features, the last one decisive.

    Raises ValueError for a layer that does not exist or a feature name that is not known.
    """
    match = re.fullmatch(r"(?:(slicefour|slice_m25811_f6)_)?(patch|cls_patch)", settings.select_feature)
    if match is None:
        raise ValueError(
            f"mm_vision_select_feature {settings.select_feature!r} is not known; "
            "use patch, cls_patch, or one of them behind slicefour_ or slice_m25811_f6_"
        )
    indices: Iterable[int] = (settings.select_layer,)
    if match[1] == "slicefour":
        indices = range(num_layers // 4 + settings.select_layer, num_layers + 1, num_layers // 4)
    elif match[1] == "slice_m25811_f6":
        indices = (-2, -5, -8, -11, 6)
    resolved = tuple(index + num_layers + 1 if index < 0 else index for index in indices)
    if not resolved or min(resolved) < 0 or max(resolved) > num_layers:
        raise ValueError(
            f"mm_vision_select_layer {settings.select_layer} with {settings.select_feature!r} asks for the hidden "
            f"states {resolved}, but an encoder of {num_layers} layers has 0 to {num_layers}"
        )
    return resolved
