"""One run, as frozen configs: what `arguments.py` makes of the flags, and all that the rest of training sees."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from llava.model.multimodal_encoder.move_kd.config import DistillConfig
from llava.train.data_config import DataConfig
from llava.train.sampler import Mode
from llava.train.stages import Stage
from llava.train.training_arguments import TrainingArguments


@dataclass(frozen=True)
class VisionConfig:
    """How the model sees. Field names are those of config.json, where they end up. moe_given: keys of `moe` that flags
    name; the others are the recipe's."""

    vision_tower: str
    vision_tower_pretrained: str | None
    mm_vision_select_layer: int
    mm_vision_select_feature: str
    mm_projector_type: str
    mm_patch_merge_type: str
    mm_use_im_start_end: bool
    mm_use_im_patch_token: bool
    mm_resampler_type: str | None
    mm_spatial_pool_stride: int | None
    mm_spatial_pool_mode: str
    mm_newline_position: str
    s2: bool
    s2_scales: str
    delay_load: bool
    unfreeze_mm_vision_tower: bool
    mm_tunable_parts: str | None
    moe: Mapping[str, Any] | None = None
    moe_given: frozenset[str] = frozenset()
    pretrain_mm_mlp_adapter: None = None  # stage-1 files are loaded by the recipe, into the whole distiller


@dataclass(frozen=True)
class LoraSettings:
    rank: int
    alpha: int
    dropout: float
    bias: str


@dataclass(frozen=True)
class QuantizationSettings:
    """bits: 4 or 8."""

    bits: int
    double_quant: bool
    quant_type: str


@dataclass(frozen=True)
class ModelConfig:
    """path: a language model or a LLaVA checkpoint. vision: None where only the language model trains.
    extra: further entries for config.json (learning rates, stage switches, image settings)."""

    path: str
    template: str
    dtype: torch.dtype
    attn_implementation: str
    max_length: int
    vision: VisionConfig | None
    lora: LoraSettings | None
    quantization: QuantizationSettings | None
    rope_scaling: Mapping[str, Any] | None
    compile_backend: str | None
    compile_mode: str | None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DistillRun:
    """teachers: specs such as "sam:size=512"."""

    config: DistillConfig
    teachers: tuple[str, ...]
    released: bool
    teacher_dtype: torch.dtype
    shard_teachers: bool
    teacher_cache: str | None


@dataclass(frozen=True)
class Run:
    """init_from: stage-1 directories and files, loaded in this order. brings_tower: one of them holds a trained tower,
    which then belongs into what is written even where it trains no more. learning_rates: one per part.
    needs_experts: the flags train experts, so a student without any is a mistake. report: write a page about the run
    when it ends. hf: transformers' settings, read by the Trainer alone. warnings: said once the log is open."""

    model: ModelConfig
    data: DataConfig
    distill: DistillRun | None
    stage: Stage
    learning_rates: Mapping[str, float]
    init_from: tuple[str, ...]
    brings_tower: bool
    needs_experts: bool
    save_whole: bool
    sampling: Mode | Literal["shuffle"]
    resume_from: str | None
    start_over: bool
    report: bool
    hf: TrainingArguments
    warnings: tuple[str, ...]
