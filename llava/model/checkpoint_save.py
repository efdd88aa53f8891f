"""Writing a student: a full checkpoint under published names, its config, its generation settings.

Every file is complete or absent: it is written under a temporary name and then renamed.
"""

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from llava.model.checkpoint_check import as_in_files
from llava.model.checkpoint_gather import gather_state_dict, is_main_process
from llava.model.checkpoint_io import CheckpointError, write_bin, write_json, write_safetensors
from llava.model.checkpoint_names import WRAPPERS, publish_experts
from llava.model.checkpoint_parts import PART_OF_FILE, published_adapter_names


def save_student(
    student: PreTrainedModel,
    directory: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor] | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """A full checkpoint in `directory`: model*.safetensors under published names (tower included), config.json,
    generation_config.json. What other LLaVA code and this loader read.

    state_dict: the student's tensors by parameter name if they are gathered already (a `student.` prefix is
    accepted), written by whoever calls; else they are gathered here, which under ZeRO-3 every rank must take part in,
    and rank 0 writes.
    Raises CheckpointError for a quantized student or an incomplete state_dict.
    """
    if student.config.to_dict().get("quantization_config") is not None:
        raise CheckpointError(
            "a quantized student cannot be saved whole. Save its adapter (save_lora), "
            "and merge that into the original weights with scripts/merge_lora_weights.py."
        )
    directory = Path(directory)
    if state_dict is None:
        state_dict = gather_state_dict(dict(student.named_parameters()) | dict(persistent_buffers(student)))
        if not is_main_process():
            return
    directory.mkdir(parents=True, exist_ok=True)
    state = as_in_files(student, _complete_state(student, state_dict))
    write_safetensors(publish_experts(state), directory, max_shard_size)
    write_generation_config(student.generation_config, directory)
    write_config(student, directory, next(tensor.dtype for tensor in state.values() if tensor.is_floating_point()))


def persistent_buffers(model: PreTrainedModel) -> dict[str, Tensor]:
    """Buffers that belong to a checkpoint: those in the state dict (rotary tables and the like are not)."""
    buffers = dict(model.named_buffers())
    return {name: buffers[name] for name in model.state_dict().keys() & buffers.keys()}


def _complete_state(student: PreTrainedModel, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The student's own tensors out of `state_dict`, tied ones once. Raises CheckpointError if one is missing."""
    given = {WRAPPERS.sub("", name): tensor for name, tensor in state_dict.items()}
    tied = student.all_tied_weights_keys
    wanted = [name for name in student.state_dict() if name not in tied]
    missing = [name for name in wanted if name not in given]
    if missing:
        raise CheckpointError(
            f"asked to save a full checkpoint, but {len(missing)} of its {len(wanted)} tensors were not given, "
            f"such as {', '.join(missing[:4])}. Gather them from every rank first (gather_state_dict)."
        )
    return {name: given[name] for name in wanted}


def write_config(student: PreTrainedModel, directory: Path, dtype: torch.dtype | None = None) -> None:
    """config.json, with the keys that older LLaVA code and servers look for beside transformers 5's own.

    dtype: of the weights in `directory`, where it is not the student's (which may train in float32)."""
    config = copy.deepcopy(student.config)
    config.architectures = [type(student).__name__]
    settings: dict[str, Any] = json.loads(config.to_json_string())
    settings["dtype"] = str(dtype or student.dtype).removeprefix("torch.")
    settings["torch_dtype"] = settings["dtype"]
    settings.pop("quantization_config", None)  # an adapter's base is quantized anew, or not, by whoever loads it
    rope = settings.get("rope_parameters") or {}
    if "rope_theta" in rope:
        settings["rope_theta"] = rope["rope_theta"]
    write_json(settings, directory / "config.json")


def write_generation_config(settings: GenerationConfig | None, directory: Path) -> None:
    if settings is not None:
        write_json(consistent_generation(json.loads(settings.to_json_string())), directory / "generation_config.json")


def consistent_generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json's content without sampling values where sampling is off.

    Vicuna's and LLaVA's published files name a temperature but no `do_sample`: generation is greedy, and
    transformers 5 warns at every call and refuses to save.
    """
    sampling = set() if settings.get("do_sample") else {"temperature", "top_p", "top_k", "typical_p", "min_p"}
    return {name: value for name, value in settings.items() if name not in sampling}


def save_parts(
    directory: str | os.PathLike[str],
    projector: Mapping[str, Tensor] | None = None,
    mole: Mapping[str, Tensor] | None = None,
    adapters: Mapping[str, Tensor] | None = None,
) -> list[str]:
    """The stage-1 files under their published names, for those parts that are given. Returns the files' names.

    Each part is a gathered state by parameter name (gather_state_dict). Call it on ranks that write.
    """
    directory = Path(directory)
    parts = {"projector": projector, "mole": mole, "adapters": adapters}
    written = []
    for name, part in PART_OF_FILE.items():
        tensors = parts[part]
        if tensors is None:
            continue
        plain = {WRAPPERS.sub("", key): tensor for key, tensor in tensors.items()}
        named = published_adapter_names(plain) if part == "adapters" else publish_experts(plain)
        write_bin(named, directory / name)
        written.append(name)
    return written
