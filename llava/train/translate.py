"""Checks that span several groups of flags, and their translation into the frozen configs of `run_config.py`."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.utils import is_flash_attn_2_available

from llava.model.checkpoint_config import read_config
from llava.model.checkpoint_io import CheckpointError, has_weights
from llava.train.data_config import DataConfig
from llava.train.distill_arguments import DistillArguments
from llava.train.environment import use_cache
from llava.train.model_arguments import DataArguments, ModelArguments
from llava.train.run_config import DistillRun, LoraSettings, ModelConfig, QuantizationSettings, Run, VisionConfig
from llava.train.sampler import Mode
from llava.train.stages import PARTS, StageFlags, select_stage
from llava.train.training_arguments import TrainingArguments

# Entries of config.json that are recorded from the flags of the same name.
RECORDED = {
    ModelArguments: (
        "tune_mm_mlp_adapter", "tune_mm_vision_resampler", "unfreeze_mm_vision_tower", "mm_tunable_parts",
        "mm_use_im_start_end", "mm_use_im_patch_token", "vision_tower_pretrained", "delay_load", "mm_newline_position",
        "mm_spatial_pool_stride", "mm_spatial_pool_mode",
    ),
    DataArguments: (
        "image_aspect_ratio", "image_grid_pinpoints", "image_crop_resolution", "image_split_resolution",
        "add_time_instruction", "force_sample",
    ),
    TrainingArguments: ("freeze_mm_mlp_adapter", "mm_projector_lr", "mm_vision_tower_lr"),
}  # fmt: skip

# The learning rates of parts.
RATE_FLAGS = {
    "projector": "mm_projector_lr",
    "mole": "mole_lr",
    "vision_tower": "mm_vision_tower_lr",
    "adapters": "adapter_lr",
}


def build_run(
    model: ModelArguments,
    data: DataArguments,
    training: TrainingArguments,
    distill: DistillArguments,
    attn_implementation: str | None,
) -> Run:
    """Check what no group can check by itself, and translate."""
    if not model.model_name_or_path:
        raise ValueError("--model_name_or_path is missing: a language model, or a LLaVA checkpoint to go on from")
    if training.cache_dir is not None:
        use_cache(training.cache_dir)
    distill.goes_on_with_experts = model.vision_tower is not None and has_experts(model.model_name_or_path)
    if distill.has_experts and model.vision_tower is None:
        raise ValueError("experts and teachers need a vision tower; add --vision_tower")
    if not data.data_path:
        raise ValueError("--data_path is missing: JSON, JSONL, parquet or a YAML mixture (docs/data.md)")
    if model.mm_resampler_type not in (None, "identity"):
        raise ValueError(f"--mm_resampler_type {model.mm_resampler_type!r} is not supported; leave it out")
    _check_validation(data, training)
    implied_experts = distill.moe_encoder is None and distill.distills
    stage = select_stage(_stage_flags(model, training, implied_experts))
    trains_experts = "mole" in stage.trainable
    idle = distill.idle_flags(trains_experts)
    if training.tune_encoder_adapter and not distill.distills:
        idle["tune_encoder_adapter"] = "no teacher is named" if distill.kd else "--kd is False"
    if training.freeze_mm_mlp_adapter and model.mm_tunable_parts:
        idle["freeze_mm_mlp_adapter"] = "--mm_tunable_parts says what trains"
    if distill.has_experts and model.pretrain_mole_encoder:
        given = (flag for flag in ("moe_init_a", "moe_init_b") if getattr(distill, flag))
        idle |= dict.fromkeys(given, "--pretrain_mole_encoder brings the experts")
    training.notes.extend(f"--{name} has no effect: {reason}" for name, reason in idle.items())
    distillation = _distill_run(distill, training, trains_experts)
    init_from = _stage_one_files(model, distill, training.notes)
    brings_tower = any(map(has_weights, init_from))
    return Run(
        model=_model_config(model, data, training, _vision_config(model, distill), distillation, attn_implementation),
        data=_data_config(model, data, training, distill.distill_views),
        distill=distillation,
        stage=stage,
        learning_rates=_learning_rates(training),
        init_from=init_from,
        brings_tower=brings_tower,
        needs_experts=bool(training.tune_encoder),
        save_whole=training.finetune or not stage.is_light or brings_tower,
        sampling=_sampling(training),
        resume_from=training.resume_from_checkpoint,
        start_over=training.overwrite_output_dir,
        report=distill.distills if training.report is None else training.report,
        hf=training,
        warnings=tuple(training.notes),
    )


def _check_validation(data: DataArguments, training: TrainingArguments) -> None:
    """Raises ValueError for an evaluation without records; records without one are worth a note."""
    held_out = [f"--{flag}" for flag in ("eval_data_path", "eval_split") if getattr(data, flag)]
    evaluates = training.eval_strategy != "no" or training.eval_on_start
    if evaluates and not held_out:
        raise ValueError("--eval_strategy has no records to evaluate; add --eval_data_path or --eval_split")
    if held_out and not evaluates:
        training.notes.append(f"the records of {held_out[0]} are never evaluated; add --eval_strategy, or drop it")


def has_experts(path: str) -> bool:
    """Whether a checkpoint has experts. One that cannot be read is refused where it is loaded."""
    try:
        return bool((read_config(path).get("moe") or {}).get("moe_encoder"))
    except CheckpointError:
        return False


def _distill_run(distill: DistillArguments, training: TrainingArguments, trains_experts: bool) -> DistillRun | None:
    config = distill.to_config(tune_encoder=trains_experts)
    if config is None:
        return None
    specs = distill.teacher_specs()
    _check_teachers(specs, distill, training)
    if specs:
        training.notes.append(f"teachers are distilled by recipe {distill.recipe!r}; --kd_recipe chooses another")
    if not config.anchor_is_target and specs:
        whose = "the student's own copy of its pretrained CLIP" if config.anchor == "clip" else "it"
        training.notes.append(f"teacher {config.anchor!r} was not named: {whose} weighs tokens and teachers, no more")
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, None: _dtype(training)}
    if distill.teacher_dtype not in dtypes:
        raise ValueError(f"--teacher_dtype {distill.teacher_dtype!r}: choose bf16, fp16 or fp32")
    return DistillRun(
        config=config,
        teachers=tuple(specs),
        released=distill.recipe == "release",
        teacher_dtype=dtypes[distill.teacher_dtype],
        shard_teachers=distill.shard_teachers,
        teacher_cache=distill.teacher_cache,
    )


def _check_teachers(specs: list[str], distill: DistillArguments, training: TrainingArguments) -> None:
    """Raises ValueError for teachers that nobody knows or that are named twice, and for options that exclude others."""
    if specs:
        from llava.model.multimodal_encoder.move_kd.teachers import parse_specs

        parsed = parse_specs(specs, released=distill.recipe == "release")
        if distill.shard_teachers and (parts := [spec.name for spec in parsed if spec.chunk]):
            raise ValueError(
                f"--shard_teachers needs every process to ask a teacher equally often; chunk= of {', '.join(parts)} "
                "does not, where processes have different numbers of pictures. Drop one of the two"
            )
    if distill.shard_teachers and not training.deepspeed:
        raise ValueError("--shard_teachers spreads teachers over the processes of a DeepSpeed run; add --deepspeed")
    if distill.shard_teachers and distill.teacher_cache is not None:
        raise ValueError(
            "--shard_teachers has nothing to do where --teacher_cache stands in for the teachers; drop one"
        )


def _dtype(training: TrainingArguments) -> torch.dtype:
    return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32


def _stage_flags(model: ModelArguments, training: TrainingArguments, implied_experts: bool) -> StageFlags:
    """implied_experts: teachers brought experts along that nobody mentioned; they are there to be trained."""
    names = {field.name for field in dataclasses.fields(StageFlags)}
    given = {name: value for name, value in {**vars(training), **vars(model)}.items() if name in names}
    if implied_experts and given["tune_encoder"] is None:
        given["tune_encoder"] = True
    return StageFlags(**given)


def _learning_rates(training: TrainingArguments) -> dict[str, float]:
    own = {part: getattr(training, flag) for part, flag in RATE_FLAGS.items()}
    return {part: training.learning_rate if own.get(part) is None else own[part] for part in PARTS}


def _sampling(training: TrainingArguments) -> Mode | Literal["shuffle"]:
    """The order of samples: a mode of `LengthGroupedSampler`, or "shuffle"."""
    modes: dict[Mode, bool] = {
        "modality": training.group_by_modality_length,
        "modality_auto": training.group_by_modality_length_auto,
        "variable": training.group_by_varlen,
        "length_auto": training.group_by_length or training.train_sampling_strategy == "group_by_length",
    }
    if training.train_sampling_strategy not in ("random", "group_by_length"):
        raise ValueError(f"--train_sampling_strategy {training.train_sampling_strategy} is not supported")
    training.train_sampling_strategy = "random"  # the order is ours; the Trainer must not group validation samples
    chosen = [mode for mode, wanted in modes.items() if wanted]
    if len(chosen) > 1:
        raise ValueError(f"choose one way to group samples by length, not {len(chosen)}: {', '.join(chosen)}")
    return chosen[0] if chosen else "shuffle"


def _stage_one_files(model: ModelArguments, distill: DistillArguments, notes: list[str]) -> tuple[str, ...]:
    """Those that there are. Raises FileNotFoundError for one that is missed; that of a part this run lacks is not."""
    needed = {
        "init_from": True,
        "pretrain_mm_mlp_adapter": True,
        "pretrain_mole_encoder": distill.has_experts,
        "pretrain_encoder_adapter": distill.distills,
    }
    files: tuple[str, ...] = ()
    for flag, is_needed in needed.items():
        if not (path := getattr(model, flag)):
            continue
        if Path(path).exists():
            files += (path,)
        elif is_needed:
            raise FileNotFoundError(f"--{flag} {path}: no such stage-1 file or directory")
        else:
            notes.append(f"--{flag} {path} does not exist, and this run has nothing to load from it")
    folders = {Path(path).parent for path in files if Path(path).is_file()}
    for folder in sorted(folders - set(map(Path, files))):
        if has_weights(folder):
            notes.append(
                f"{folder} holds a whole student; its vision tower is not used: --init_from {folder} would take it too"
            )
    return files


def attention(asked: str | None, notes: list[str]) -> str:
    """The attention kernel of the language model: the one asked for, or sdpa where flash-attn is not installed."""
    if asked == "flash_attention_2" and not is_flash_attn_2_available():
        notes.append("flash-attn is not installed (or there is no GPU); attention runs as sdpa")
        return "sdpa"
    return asked or "sdpa"


def _model_config(
    model: ModelArguments,
    data: DataArguments,
    training: TrainingArguments,
    vision: VisionConfig | None,
    distillation: DistillRun | None,
    attn_implementation: str | None,
) -> ModelConfig:
    lora = LoraSettings(training.lora_r, training.lora_alpha, training.lora_dropout, training.lora_bias)
    quantization = QuantizationSettings(training.bits, training.double_quant, training.quant_type)
    return ModelConfig(
        path=str(model.model_name_or_path),
        template=model.version,
        dtype=_dtype(training),
        attn_implementation=attention(training.attn_implementation or attn_implementation, training.notes),
        max_length=training.model_max_length,
        vision=vision,
        lora=lora if training.lora_enable else None,
        quantization=quantization if training.bits != 16 else None,
        rope_scaling=_rope_scaling(model),
        compile_backend=training.compile_backend,
        compile_mode=training.compile_mode,
        extra=_config_entries(model, data, training, distillation is not None),
    )


def _vision_config(model: ModelArguments, distill: DistillArguments) -> VisionConfig | None:
    if model.vision_tower is None:
        return None
    names = {field.name for field in dataclasses.fields(VisionConfig)} - {"moe", "moe_given", "pretrain_mm_mlp_adapter"}
    settings = {name: value for name, value in vars(model).items() if name in names}
    mole = distill.mole_config()
    return VisionConfig(**settings, moe=None if mole is None else mole.to_dict(), moe_given=distill.given_moe_keys())


def _rope_scaling(model: ModelArguments) -> dict[str, Any] | None:
    if model.rope_scaling_factor is None:
        return None
    return {"rope_type": model.rope_scaling_type or "linear", "factor": model.rope_scaling_factor}


def _config_entries(
    model: ModelArguments, data: DataArguments, training: TrainingArguments, distills: bool
) -> dict[str, Any]:
    groups = {ModelArguments: model, DataArguments: data, TrainingArguments: training}
    entries = {name: vars(group)[name] for kind, group in groups.items() for name in RECORDED[kind]}
    entries["tokenizer_model_max_length"] = training.model_max_length
    entries["training_data"] = Path(data.data_path).name if data.data_path else None  # for the model card
    return entries | ({"kd": {"kd_mode": True}} if distills else {})


def _data_config(
    model: ModelArguments, data: DataArguments, training: TrainingArguments, distill_views: Any
) -> DataConfig:
    names = {field.name for field in dataclasses.fields(DataConfig)}
    given = {name: value for name, value in vars(data).items() if name in names}
    return DataConfig(
        **given,
        is_multimodal=model.vision_tower is not None,
        mm_use_im_start_end=model.mm_use_im_start_end,
        model_max_length=training.model_max_length,
        distill_views=distill_views,
        bad_sample_log=str(Path(str(training.output_dir)) / "bad_samples.jsonl"),
        cache_dir=training.cache_dir,
        seed=training.seed,
    )
