"""CLIP as LLaVA's vision tower, plain, with mixture-of-LoRA-experts layers, or at several scales (S2)."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from llava.model.multimodal_encoder.move_kd.attention import cls_attention_row
from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.multimodal_encoder.move_kd.mole import record_routing
from llava.model.multimodal_encoder.move_kd.student import install_experts, num_used_layers
from llava.model.multimodal_encoder.move_kd.types import StudentFeatures
from llava.model.multimodal_encoder.vision_tower import VisionTower, resolve_layers


class CLIPVisionTower(VisionTower):
    """CLIP's image encoder up to the layer that `mm_vision_select_layer` chooses; later layers are kept, not run
    (all run if experts are in all of them, so that every router is heard)."""

    config_class = CLIPVisionConfig
    has_class_token = True

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False) -> None:
        # Experts must stand before any weight is loaded, so loading waits until they do.
        super().__init__(vision_tower, args, delay_load=True)
        num_layers = self.config.num_hidden_layers
        self.layers = resolve_layers(self.settings, num_layers)
        self.num_run_layers = max(self.layers)
        self.anchor = num_used_layers(num_layers, self.select_layer)  # the hidden state that distillation compares
        if self.settings.moe is not None:
            self.add_experts(self.settings.moe)
        if not delay_load:
            self.load_model()

    def add_experts(self, moe: dict[str, Any]) -> None:
        """Put experts, drawn anew, around the MLPs of a tower without, as `config.moe` describes them."""
        config = MoLEConfig.from_dict(moe)
        install_experts(self.vision_tower.vision_model, config, self.num_run_layers)
        self.settings = replace(self.settings, moe=moe)
        if config.layers == "all":
            self.num_run_layers = self.config.num_hidden_layers

    def _processor(self) -> Any:
        # The Pillow backend gives the same pixels with and without torchvision.
        return CLIPImageProcessorPil.from_pretrained(self.vision_tower_name)

    def encode(self, images: Tensor, with_cls_attention: bool = False) -> StudentFeatures:
        keep = {*self.layers, self.anchor - 1} if with_cls_attention else set(self.layers)
        solos = self.solos if self.training else 0
        passes = images.repeat(1 + solos, 1, 1, 1) if solos else images
        with record_routing([self.vision_tower]) as routing:
            states = self._hidden_states(passes, keep, self.num_run_layers)
        hidden = torch.cat([states[layer] for layer in self.layers], dim=-1)
        hidden, *alone = hidden.split(len(images))
        patches = hidden[:, 1:]
        return StudentFeatures(
            features=hidden if self.select_feature.endswith("cls_patch") else patches,
            patches=patches,
            cls=hidden[:, 0],
            cls_attention=self._cls_attention(states)[: len(images)] if with_cls_attention else None,
            routing=tuple(routing),
            solos=torch.stack([tokens[:, 1:] for tokens in alone]) if alone else None,
        )

    def _cls_attention(self, states: dict[int, Tensor]) -> Tensor:
        if self.anchor == 0:
            raise ValueError("mm_vision_select_layer 0 is the encoder's input: no block attends there")
        block = self.vision_tower.vision_model.encoder.layers[self.anchor - 1]
        assert isinstance(block, CLIPEncoderLayer)
        return cls_attention_row(block, states[self.anchor - 1])

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size * len(self.layers)


class CLIPVisionTowerS2(CLIPVisionTower):
    """CLIP at several scales: larger versions of the picture are cut into squares of the smallest scale, and their
    features are put together again, averaged down to the smallest grid and joined channel-wise (the S2 method)."""

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False) -> None:
        super().__init__(vision_tower, args, delay_load)
        self.scales = self.settings.s2_scales
        if self.scales[0] != self.image_size or self.select_feature != "patch":
            raise ValueError(
                f"S2 starts from the encoder's own size and its patches: s2_scales must begin with "
                f"{self.config.image_size}, not {self.scales[0]}, and mm_vision_select_feature must be 'patch', "
                f"not {self.select_feature!r}"
            )

    def _processor(self) -> Any:
        processor = super()._processor()
        side = self.scales[-1]
        processor.size = {"shortest_edge": side}
        processor.crop_size = {"height": side, "width": side}
        return processor

    def encode(self, images: Tensor, with_cls_attention: bool = False) -> StudentFeatures:
        """As for CLIP, with D * scales channels; images: (T, 3, S, S) of the largest scale. There is no one class
        token, so `cls` is None. Raises ValueError for `with_cls_attention`."""
        if with_cls_attention:
            raise ValueError("an S2 tower sees a picture as many: it has no class token whose attention could be given")
        base = self.scales[0]
        counts = [math.ceil(scale / base) for scale in self.scales]
        squares = [
            split_squares(F.interpolate(images.float(), size=(scale, scale), mode="bicubic"), count)
            for scale, count in zip(self.scales, counts, strict=True)
        ]
        encoded = super().encode(torch.cat(squares))
        patches = self._joined(encoded.patches, counts)
        solos = None if encoded.solos is None else torch.stack([self._joined(one, counts) for one in encoded.solos])
        return StudentFeatures(features=patches, patches=patches, routing=encoded.routing, solos=solos)

    def _joined(self, patches: Tensor, counts: list[int]) -> Tensor:
        """Of the squares of all scales, T * sum(counts**2) in all, to (T, N, D * scales)."""
        tiles = len(patches) // sum(count**2 for count in counts)
        groups = patches.split([tiles * count**2 for count in counts])
        grids = [self._pooled(group, count) for group, count in zip(groups, counts, strict=True)]
        return torch.cat(grids, dim=1).flatten(2).transpose(1, 2)

    def _pooled(self, patches: Tensor, count: int) -> Tensor:
        """(T * count**2, N, D) as one map per tile at the grid of a single square: (T, D, side, side)."""
        side = self.num_patches_per_side
        merged = merge_squares(patches.transpose(1, 2).unflatten(2, (side, side)), count)
        return F.interpolate(merged.float(), size=(side, side), mode="area").to(patches.dtype)

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size * len(self.settings.s2_scales)


def split_squares(images: Tensor, count: int) -> Tensor:
    """(T, C, S, S) to (count**2 * T, C, S / count, S / count), squares in reading order, T innermost."""
    return torch.cat([part for row in images.chunk(count, dim=2) for part in row.chunk(count, dim=3)])


def merge_squares(squares: Tensor, count: int) -> Tensor:
    """The inverse of `split_squares`."""
    parts = squares.chunk(count**2)
    return torch.cat([torch.cat(parts[row * count : (row + 1) * count], dim=3) for row in range(count)], dim=2)
