"""All weight input and output of a LLaVA student: reading any published layout, filling parts, writing them back.

The one design rule: names are upgraded, towers and partial files are merged, and everything is compared with the
model before it is built. What is then handed to transformers' from_pretrained is complete and fits, so that ZeRO-3,
quantization and device maps are its business alone.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from llava.model.checkpoint_check import build_skeleton, check_state, expected_shapes, is_read
from llava.model.checkpoint_config import model_class_of, read_config, student_config
from llava.model.checkpoint_gather import gather_state_dict
from llava.model.checkpoint_io import CheckpointError, find_file, read_json, read_state_dict
from llava.model.checkpoint_lora import load_lora, save_lora
from llava.model.checkpoint_names import (
    VISION_MODEL,
    canonical_name,
    fit_expert_layers,
    fit_inner_name,
    tower_name,
    upgrade_state_dict,
)
from llava.model.checkpoint_parts import load_parts
from llava.model.checkpoint_save import consistent_generation, save_parts, save_student
from llava.model.quantization import leave_odd_widths_unpacked

__all__ = [
    "CheckpointError",
    "build_student",
    "gather_state_dict",
    "load_lora",
    "load_parts",
    "load_student",
    "read_state_dict",
    "save_lora",
    "save_parts",
    "save_student",
    "upgrade_state_dict",
]

logger = logging.get_logger(__name__)


def load_student(
    model_class: type[PreTrainedModel] | None,
    path: str | os.PathLike[str],
    *,
    attn_implementation: str | None = "sdpa",
    dtype: torch.dtype | str = "auto",
    quantization_config: Any = None,
    device_map: Any = None,
    overwrite_config: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """A LLaVA model from a full checkpoint in any published layout, or from a plain language model (then without
    vision, which `initialize_vision_modules` adds).

    model_class: None takes the class that config.json means. dtype "auto" is the checkpoint's.
    Under an active ZeRO-3 configuration the parameters are created partitioned.
    Raises CheckpointError.
    """
    config = student_config(read_config(path), path, overwrite_config)
    return build_student(
        model_class,
        config,
        upgrade_state_dict(read_state_dict(path)),
        str(path),
        generation=path,
        attn_implementation=attn_implementation,
        dtype=dtype,
        quantization_config=quantization_config,
        device_map=device_map,
    )


def build_student(
    model_class: type[PreTrainedModel] | None,
    config: PreTrainedConfig,
    state: Mapping[str, Tensor],
    source: str,
    *,
    generation: str | os.PathLike[str],
    attn_implementation: str | None = "sdpa",
    dtype: torch.dtype | str = "auto",
    quantization_config: Any = None,
    device_map: Any = None,
) -> PreTrainedModel:
    """The model of `config` with the weights in `state` (our names), its vision tower filled from `mm_vision_tower`
    where `state` has none of it. model_class: None takes the config's. source: what errors call the checkpoint.
    generation: the directory whose generation settings it takes."""
    model_class = model_class or model_class_of(config.model_type)
    if attn_implementation == "sdpa" and not model_class._supports_sdpa:
        attn_implementation = "eager"  # MPT
    skeleton = build_skeleton(model_class, config, source)
    state = check_state(with_tower(state, skeleton, config, source), skeleton, source)
    model = model_class.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=checkpoint_dtype(state) if dtype == "auto" else dtype,
        attn_implementation=attn_implementation,
        quantization_config=quantization_config,
        device_map=device_map,
    )
    if quantization_config is not None:
        leave_odd_widths_unpacked(model)
    model.name_or_path = model.config._name_or_path = source
    if (settings := read_generation_config(generation)) is not None:
        model.generation_config = settings
    return model


def with_tower(state: Mapping[str, Tensor], skeleton: Any, config: PreTrainedConfig, source: str) -> dict[str, Tensor]:
    """`state` under the skeleton's names, with the tower tensors that it lacks from the encoder that config names.

    Published 1.5 checkpoints hold no tower at all, later ones a whole one, or none of its end, which is not read.
    Raises CheckpointError for a tower with holes.
    """
    expected = expected_shapes(skeleton).keys()
    state = fit_expert_layers(fit_inner_name(state, skeleton.base_model_prefix), expected)
    lacking = [name for name in expected if canonical_name(name).startswith(VISION_MODEL) and name not in state]
    if not lacking:
        return state
    read = [name for name in expected if is_read(canonical_name(name), skeleton.get_vision_tower().num_run_layers)]
    if (absent := [name for name in read if name not in state]) and len(absent) < len(read):
        raise CheckpointError(
            f"{source} holds only {len(read) - len(absent)} of the {len(read)} tensors of its vision tower that are "
            f"read; missing are {', '.join(absent[:4])} and others. Fetch the file that has them."
        )
    tower = fit_expert_layers(fit_inner_name(read_tower(config.mm_vision_tower), skeleton.base_model_prefix), expected)
    found = {name: tower[name] for name in lacking if name in tower}
    logger.info(f"{len(found)} tensors of the vision tower come from {config.mm_vision_tower}")
    return state | found


def read_tower(path: str) -> dict[str, Tensor]:
    """The vision half of an encoder's own checkpoint, under the names that a plain LLaVA tower has them by."""
    renamed = {tower_name(name): tensor for name, tensor in read_state_dict(path).items()}
    return {name: tensor for name, tensor in renamed.items() if name is not None}


def grow_vocabulary(state: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """`state` with embeddings and head of at least `rows` rows; new rows are the mean of the old ones.

    A base model knows nothing of the tokens that a LLaVA model trained on it has added.
    """
    grown = dict(state)
    for name in ("model.embed_tokens.weight", "transformer.wte.weight", "lm_head.weight"):
        if name in grown and len(grown[name]) < rows:
            table = grown[name]
            mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
            grown[name] = torch.cat([table, mean.expand(rows - len(table), -1)])
    return grown


def checkpoint_dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that most of the checkpoint's weights have."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in state.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


def read_generation_config(path: str | os.PathLike[str]) -> GenerationConfig | None:
    """generation_config.json, or what config.json says of generation; None if it says nothing."""
    file = find_file(path, "generation_config.json")
    if file is not None:
        values = read_json(file)
    else:
        raw = read_config(path)
        values = {name: raw[name] for name in GenerationConfig().to_dict() if raw.get(name) is not None}
    return GenerationConfig.from_dict(consistent_generation(values)) if values else None
