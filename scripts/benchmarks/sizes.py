"""Networks of a distillation step with random weights, at full size and reduced in two ways.

`paced` keeps the pictures at their full sides and shrinks the networks until one CPU core needs for an image about
what an accelerator needs for the full ones, so that image work, which is the CPU's in both, has its share of the step.
`reduced` divides everything: widths of encoders by 8/3, of language model and vocabulary by 8, depths by 2 and 8, the
sides of the pictures by 1.5 (student) and 2.3 (teachers).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    SamVisionConfig,
    SamVisionModel,
)

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.multimodal_encoder.move_kd.config import MoLEConfig
from llava.model.multimodal_encoder.move_kd.teachers import parse_spec
from llava.model.multimodal_encoder.move_kd.teachers.base import BuildContext, FrozenTeacher
from llava.model.multimodal_encoder.move_kd.teachers.clip import Clip
from llava.model.multimodal_encoder.move_kd.teachers.convnext import ConvNext
from llava.model.multimodal_encoder.move_kd.teachers.eva02 import Eva02, EvaBackbone, EvaConfig
from llava.model.multimodal_encoder.move_kd.teachers.sam import Sam

HEAD = 64  # width of an attention head in every encoder


@dataclass(frozen=True)
class Sizes:
    """image, patch: of student and CLIP teacher; teacher_image, teacher_patch: of EVA and SAM (ConvNeXt sees the same
    pictures). width, layers: of every transformer among the encoders. window: of EVA and SAM, where one layer in
    `global_every` sees everything."""

    image: int
    patch: int
    teacher_image: int
    teacher_patch: int
    width: int
    layers: int
    window: int
    global_every: int
    convnext_patch: int
    convnext_widths: tuple[int, ...]
    convnext_depths: tuple[int, ...]
    rank: int
    lm_width: int
    lm_layers: int
    lm_hidden: int
    vocabulary: int

    def text(self) -> str:
        return (
            f"CLIP {self.layers} layers of {self.width} at {self.image} px, patch {self.patch}; EVA and SAM "
            f"{self.layers} layers of {self.width} at {self.teacher_image} px, patch {self.teacher_patch}; ConvNeXt "
            f"{self.convnext_depths} layers of {self.convnext_widths} at {self.teacher_image} px, "
            f"stem {self.convnext_patch}; 3 experts of rank {self.rank}; language model "
            f"{self.lm_layers} layers of {self.lm_width}, {self.vocabulary} words"
        )


SIZES = {
    "full": Sizes(
        336, 14, 1024, 16, 1024, 24, 16, 3, 4, (384, 768, 1536, 3072), (3, 4, 30, 3), 32, 4096, 32, 11008, 32000
    ),
    "paced": Sizes(336, 28, 1024, 64, 128, 6, 4, 3, 8, (32, 64, 128, 256), (1, 1, 3, 1), 4, 384, 3, 1032, 3000),
    "reduced": Sizes(224, 14, 448, 16, 384, 12, 7, 3, 4, (144, 288, 576, 1152), (2, 2, 8, 2), 12, 512, 4, 1376, 4000),
    "tiny": Sizes(28, 14, 64, 16, 64, 2, 2, 2, 4, (8, 8, 16, 16), (1, 1, 2, 1), 2, 64, 1, 96, 300),
}


def clip_config(sizes: Sizes, **overrides: Any) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=sizes.width,
        intermediate_size=4 * sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=max(1, sizes.width // HEAD),
        image_size=sizes.image,
        patch_size=sizes.patch,
        **overrides,
    )


def processor(size: int) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def build_student(sizes: Sizes, folder: Path, moe: MoLEConfig | None) -> LlavaLlamaForCausalLM:
    """A LLaVA whose tower's configuration lies in `folder`, on the default device and in the default dtype."""
    clip_config(sizes).save_pretrained(folder)
    processor(sizes.image).save_pretrained(folder)
    config = LlavaConfig(
        hidden_size=sizes.lm_width,
        intermediate_size=sizes.lm_hidden,
        num_hidden_layers=sizes.lm_layers,
        num_attention_heads=max(1, sizes.lm_width // 128),
        vocab_size=sizes.vocabulary,
        max_position_embeddings=2048,
        mm_vision_tower=str(folder),
        mm_hidden_size=sizes.width,
        mm_vision_select_layer=-2,
        mm_projector_type="mlp2x_gelu",
        image_aspect_ratio="pad",
        **({} if moe is None else {"moe": moe.to_dict()}),
    )
    student = LlavaLlamaForCausalLM(config)
    student.get_vision_tower().mark_loaded()
    return student.train()


class RandomClip(Clip):
    def load(self, context: BuildContext) -> CLIPVisionModel:
        net = CLIPVisionModel(clip_config(self.sizes))
        self.native_size = self.sizes.image
        net.encoder.layers = net.encoder.layers[:-1]  # hidden state -2
        net.post_layernorm = nn.Identity()  # type: ignore[assignment]
        return net


class RandomEva(Eva02):
    def load(self, context: BuildContext) -> EvaBackbone:
        sizes = self.sizes
        everywhere = frozenset(range(sizes.global_every - 1, sizes.layers, sizes.global_every))
        hidden = 8 * sizes.width // 3
        heads = max(1, sizes.width // HEAD)
        self.config = EvaConfig(
            sizes.width, sizes.layers, heads, sizes.teacher_patch, hidden, sizes.window, everywhere, 197
        )
        return EvaBackbone(self.config, sizes.teacher_image)


class RandomConvNext(ConvNext):
    def load(self, context: BuildContext) -> ConvNextModel:
        sizes = self.sizes
        config = ConvNextConfig(
            hidden_sizes=[*sizes.convnext_widths], depths=[*sizes.convnext_depths], patch_size=sizes.convnext_patch
        )
        net = ConvNextModel(config)
        net.layernorm = nn.Identity()  # type: ignore[assignment]
        return net


class RandomSam(Sam):
    def load(self, context: BuildContext) -> SamVisionModel:
        sizes = self.sizes
        config = SamVisionConfig(
            hidden_size=sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=max(1, sizes.width // HEAD),
            image_size=sizes.teacher_image,
            patch_size=sizes.teacher_patch,
            window_size=sizes.window,
            global_attn_indexes=[*range(sizes.layers // 4 - 1, sizes.layers, sizes.layers // 4 or 1)],
            mlp_dim=4 * sizes.width,
            initializer_range=0.02,  # its own is 1e-10: activations too small for a processor's normal path
        )
        return SamVisionModel(config)


KINDS: dict[str, type[FrozenTeacher]] = {
    "clip": RandomClip,
    "eva": RandomEva,
    "convnext": RandomConvNext,
    "sam": RandomSam,
}


def build_teachers(
    sizes: Sizes, names: list[str], dtype: torch.dtype, device: torch.device
) -> dict[str, FrozenTeacher]:
    """Frozen teachers of the library with random weights, by name."""
    built = {}
    for name in names:
        size = sizes.image if name == "clip" else sizes.teacher_image
        kind = type(KINDS[name].__name__, (KINDS[name],), {"sizes": sizes})
        built[name] = kind(parse_spec(f"{name}:size={size}"), BuildContext(dtype, device))
    return built
