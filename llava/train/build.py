"""From configs to the things around the student: tokenizer, teachers, distiller, data."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llava.model.checkpoint import load_parts
from llava.model.checkpoint_config import read_config
from llava.model.checkpoint_gather import is_partitioned
from llava.model.checkpoint_parts import load_own_adapters
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.move_kd.types import stack
from llava.model.tokenizer import load_tokenizer
from llava.train.data_config import DataConfig
from llava.train.dataset import make_data_module
from llava.train.environment import say
from llava.train.prompts import training_template
from llava.train.record_files import require_file
from llava.train.run_config import DistillRun, ModelConfig, Run
from llava.train.sources import expand
from llava.train.training_arguments import zero_stage


def build_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The language model's tokenizer, padding on the right with a token that exists."""
    tokenizer = load_tokenizer(config.path)
    tokenizer.model_max_length = config.max_length
    tokenizer.padding_side = "right"
    if config.template == "v0" and tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    elif tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def build_teachers(run: Run, student: Any) -> dict[str, Any]:
    """Frozen teachers by name; none for plain LLaVA. Their code is imported only here."""
    if run.distill is None or not run.distill.teachers:
        return {}
    from llava.model.multimodal_encoder.move_kd import teachers

    check_students_copy(run.distill, student)
    if run.distill.teacher_cache is not None:
        from llava.model.multimodal_encoder.move_kd.cache_lookup import open_cached_teachers

        return dict(
            open_cached_teachers(
                run.distill.teachers,
                run.distill.teacher_cache,
                student_tower=student.get_vision_tower(),
                dtype=run.distill.teacher_dtype,
                released=run.distill.released,
            )
        )
    stays = "vision_tower" not in run.stage.trainable and not run.brings_tower
    shares = stays and zero_stage(run.hf.deepspeed) < 3
    if shares:
        student.get_vision_tower().to(
            run.hf.device
        )  # a teacher that shares its weights is asked before training starts
    built = teachers.build_teachers(
        run.distill.teachers,
        student_tower=student.get_vision_tower(),
        dtype=run.distill.teacher_dtype,
        device=run.hf.device,
        shared_dtype=run.model.dtype if shares else None,  # see `set_precision`
        released=run.distill.released,
    )
    return teachers.shard_teachers(built) if run.distill.shard_teachers else built


def check_students_copy(distill: DistillRun, student: Any) -> None:
    """Raises ValueError if the student's own tower is to weigh tokens and has no class token."""
    config = distill.config
    implied = config.anchor == "clip" and not config.anchor_is_target
    if implied and not isinstance(student.get_vision_tower(), CLIPVisionTower):
        raise ValueError(
            "tokens are weighed by a CLIP's class attention. No teacher 'clip' is named, and the student's own tower "
            "is no CLIP that could be copied: name one, as in --encoder_teachers clip:path=DIR, or set "
            "--kd_token_weights uniform (and --kd_teacher_weights uniform)"
        )


def build_distiller(run: Run, student: PreTrainedModel, teachers: Mapping[str, Any]) -> Any:
    """The module that trains. A teacher of whom more than patches is wanted shows on a blank that it gives that. Raises
    ValueError if one does not fit."""
    from llava.model.multimodal_encoder.move_kd.distiller import Distiller

    distiller = Distiller(student, teachers, None if run.distill is None else run.distill.config)
    for name, fields in distiller.required.items():
        if fields:
            blank = send_to_device(stack([teachers[name].source.blank()]), run.hf.device)
            distiller.check_answer(name, teachers[name](blank))
    return distiller


def set_precision(distiller: nn.Module, run: Run) -> None:
    """The run's dtype for every weight; DeepSpeed keeps float32 copies of those that train. Without it they are
    float32 themselves, and autocast rounds a copy in each step."""
    for parameter in distiller.parameters():
        if parameter.is_floating_point() and not is_partitioned(parameter):
            exact = parameter.requires_grad and not run.hf.deepspeed
            parameter.data = parameter.data.to(torch.float32 if exact else run.model.dtype)


def load_stage_one(distiller: nn.Module, run: Run) -> None:
    """Stage-1 files, and the adapters of the checkpoint that the run goes on from; in whatever precision the weights
    have by now. Raises CheckpointError if files do not fit."""
    filled: list[str] = []
    for path in run.init_from:
        filled += (found := load_parts(distiller, path))
        say(f"loaded {', '.join(found) or 'nothing'} from {path}")
    goes_on = run.distill is not None and "kd" in read_config(run.model.path)
    if goes_on and "adapters" not in filled and load_own_adapters(distiller, run.model.path):
        say(f"loaded adapters from {run.model.path}")


def check_data(config: DataConfig) -> None:
    """Raises DataError for a file of records that is not there, before models are loaded for nothing."""
    for path in filter(None, (config.data_path, config.eval_data_path)):
        for file in expand(path):
            require_file(file)


def build_data(
    run: Run, tokenizer: PreTrainedTokenizerBase, student: Any, teachers: Mapping[str, Any]
) -> dict[str, Any]:
    """train_dataset, eval_dataset and data_collator."""
    processor = student.get_vision_tower().image_processor if run.model.vision is not None else None
    sources = {name: teacher.source for name, teacher in teachers.items()}
    return make_data_module(tokenizer, run.data, processor, training_template(run.model.template), sources)
