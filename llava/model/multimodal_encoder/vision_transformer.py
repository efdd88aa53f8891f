"""A vision transformer under the parameter names that published LLaVA checkpoints use.

Why not a `CLIPVisionModel`: transformers renames the parameters of every PreTrainedModel it finds inside another one
(since 5.6 that class has lost its `vision_model.` level, and from_pretrained strips it from checkpoints), and what
save_pretrained writes then depends on where the weights came from. That mapping looks at PreTrainedModel submodules
only. So the tower is a plain module around transformers' encoder layers: its state-dict names are the published ones
by construction, for from_pretrained, save_pretrained, ZeRO-3, device maps and quantization alike. It also keeps no
buffers, because from_pretrained leaves buffers that are not in the checkpoint uninitialized.

Shapes: T tiles, N patches, D width, S image side.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, SiglipVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

VisionConfig = CLIPVisionConfig | SiglipVisionConfig


def side(length: object) -> int:
    """The side of a square as configurations give it. Raises ValueError for what is not one number."""
    if not isinstance(length, int):
        raise ValueError(f"vision towers see square images in square patches, but the configuration says {length}")
    return length


class VisionEmbeddings(nn.Module):
    """Image patches with learned positions; CLIP puts a class token in front, SigLIP has none."""

    def __init__(self, config: VisionConfig, has_class_token: bool) -> None:
        super().__init__()
        width, patch = config.hidden_size, side(config.patch_size)
        self.image_size = side(config.image_size)
        self.num_positions = (self.image_size // patch) ** 2 + int(has_class_token)
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, patch, bias=not has_class_token)
        self.position_embedding = nn.Embedding(self.num_positions, width)
        self.class_embedding = nn.Parameter(torch.empty(width)) if has_class_token else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize what is neither a convolution nor an embedding table."""
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding, std=self.class_embedding.shape[0] ** -0.5)

    def forward(self, images: Tensor) -> Tensor:
        """images: (T, 3, S, S). Returns (T, N, D), or (T, 1 + N, D) with a class token.

        Raises ValueError for images of another size than the positions are for.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"the vision tower takes images of {self.image_size} x {self.image_size} px, these are "
                f"{images.shape[-1]} x {images.shape[-2]}; prepare them with the tower's own image processor"
            )
        embeddings = self.patch_embedding(images).flatten(2).transpose(1, 2)  # (T, N, D)
        if self.class_embedding is not None:
            class_token = self.class_embedding.to(embeddings.dtype).expand(len(images), 1, -1)
            embeddings = torch.cat([class_token, embeddings], dim=1)
        positions = torch.arange(self.num_positions, device=images.device)
        return embeddings + self.position_embedding(positions)


class Encoder(nn.Module):
    """Only a level of names: the layers are run by VisionTransformer."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class VisionTransformer(nn.Module):
    """CLIP's (`has_class_token`) or SigLIP's image encoder, whose hidden states are read one by one."""

    def __init__(self, config: VisionConfig, num_layers: int, has_class_token: bool) -> None:
        super().__init__()
        # Attention maps are never read from the layers (see move_kd/attention.py), so no need for eager attention.
        config._attn_implementation = "sdpa"
        layer: Callable[[Any], nn.Module] = CLIPEncoderLayer if has_class_token else SiglipEncoderLayer
        self.embeddings = VisionEmbeddings(config, has_class_token)
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if has_class_token else nn.Identity()
        self.pre_layrnorm = norm  # sic, the published name
        self.encoder = Encoder([layer(config) for _ in range(num_layers)])
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, images: Tensor, keep: Collection[int], num_layers: int) -> list[Tensor | None]:
        """Run `num_layers` layers and return the hidden states: entry 0 is the input of the first layer, i the output
        of the i-th, None where `keep` does not ask for it. images: (T, 3, S, S); each state (T, [1 +] N, D), not
        normalized. (A list, because ZeRO-3's hooks want string keys in the dicts that a module returns.)"""
        hidden = self.pre_layrnorm(self.embeddings(images))
        states = [hidden if 0 in keep else None]
        for index, layer in enumerate(self.encoder.layers[:num_layers], start=1):
            hidden = layer(hidden, None)  # positional, so that checkpointing sees the tensor
            states.append(hidden if index in keep else None)
        return states


class VisionModule(nn.Module):
    """What published checkpoints call `vision_tower.vision_tower`: `vision_model` and its configuration."""

    def __init__(self, config: VisionConfig, vision_model: VisionTransformer) -> None:
        super().__init__()
        self.config = config
        self.vision_model = vision_model
