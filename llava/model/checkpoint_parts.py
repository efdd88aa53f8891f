"""Files that hold one part of a model: mm_projector.bin, mole_encoder.bin, encoder_adapter.bin."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor, nn
from transformers.utils import logging

from llava.model.checkpoint_check import may_be_left_over
from llava.model.checkpoint_gather import copy_into, full_shape
from llava.model.checkpoint_io import (
    CheckpointError,
    find_file,
    find_weight_files,
    has_weights,
    read_state_dict,
    read_tensors,
)
from llava.model.checkpoint_names import (
    ADAPTER_NAME,
    MOLE_NAME,
    NEWLINE,
    PROJECTOR,
    TOWER,
    WRAPPERS,
    canonical_name,
    fit_expert_layers,
    projector_names,
    stack_experts,
    upgrade_state_dict,
)

PROJECTOR_FILE = "mm_projector.bin"
MOLE_FILE = "mole_encoder.bin"
ADAPTERS_FILE = "encoder_adapter.bin"
PART_OF_FILE = {PROJECTOR_FILE: "projector", MOLE_FILE: "mole", ADAPTERS_FILE: "adapters"}
EMBEDDINGS = "model.embed_tokens.weight"

logger = logging.get_logger(__name__)


def find_parts(path: str | os.PathLike[str]) -> dict[str, Path]:
    """Part name -> file, for a directory, a hub repository, or one file.

    One file is told by its tensors, because training gives it other names (`mm_projector/checkpoint-100.bin`).
    Raises CheckpointError if there is none.
    """
    file = Path(path)
    if file.is_file():
        return {PART_OF_FILE.get(file.name) or _part_of_tensors(file): file}
    parts = {part: found for name, part in PART_OF_FILE.items() if (found := find_file(path, name)) is not None}
    if not parts:
        raise CheckpointError(f"{path} holds none of {', '.join(PART_OF_FILE)}. Pass a stage-1 output directory.")
    return parts


def _part_of_tensors(file: Path) -> str:
    names = list(read_tensors(file))
    if any("mm_projector." in name for name in names):
        return "projector"
    if any(".mlp.moe_" in name for name in names):
        return "mole"
    if any("adapter" in name for name in names):
        return "adapters"
    raise CheckpointError(f"{file} holds no projector, experts or adapters, but {', '.join(names[:4])}.")


def read_part(part: str, file: Path) -> dict[str, Tensor]:
    """The tensors of one part's file, under our names. Raises CheckpointError."""
    state = read_tensors(file)
    if part == "projector":
        return projector_names(state)
    if part == "adapters":
        return adapter_names(state)
    return stack_experts({WRAPPERS.sub("", name): tensor for name, tensor in state.items()})


def adapter_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """encoder_adapter.bin, ours or published, under our names. Raises ValueError for tensors of neither."""
    # Imported here: a model without teachers has no adapters.
    from llava.model.multimodal_encoder.move_kd.adapters import from_published_adapters

    plain = {WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    return {f"adapters.{name}": tensor for name, tensor in from_published_adapters(plain).items()}


def published_adapter_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters as encoder_adapter.bin has them: published names for published adapters, ours for the rest."""
    from llava.model.multimodal_encoder.move_kd.adapters import to_published_adapters

    return to_published_adapters({name.removeprefix("adapters."): tensor for name, tensor in state.items()})


def load_parts(model: nn.Module, path: str | os.PathLike[str]) -> list[str]:
    """Fill a student's or a distiller's parts from `path` (a directory or one file); returns the parts filled.

    Of a directory that holds a whole student, as a stage that trains the tower writes it, the vision tower is one of
    them, with its experts; the language model never is. A model without adapters leaves encoder_adapter.bin alone. Of
    adapters, those of teachers that are on both sides are filled, and a warning names the others. Works on parameters
    partitioned by ZeRO-3; every rank must call it then.
    Raises CheckpointError naming tensors that are missing, not known, or of the wrong shape.
    """
    owned = {canonical_name(WRAPPERS.sub("", name)): parameter for name, parameter in _named_tensors(model)}
    filled = []
    for part, file in find_parts(path).items():
        targets = {name: tensor for name, tensor in owned.items() if is_of_part(name, part)}
        if part == "adapters" and not targets:
            logger.info(f"{file} is not needed: this model has no adapters")
            continue
        state = read_part(part, file)
        if part == "adapters":
            state, targets = _of_shared_teachers(state, targets, file)
        copy_into(targets, _fitting(state, targets, part, file))
        filled.append(part)
    if has_weights(path):
        targets = {name: tensor for name, tensor in owned.items() if name.startswith(TOWER)}
        state = read_trained_tower(path, targets)
        if not any(MOLE_NAME.search(name) for name in state):  # experts that the file knows nothing of start anew
            targets = {name: tensor for name, tensor in targets.items() if not MOLE_NAME.search(name)}
        copy_into(targets, _fitting(state, targets, "vision tower", Path(path)))
        filled.append("vision_tower")
    return filled


def read_trained_tower(path: str | os.PathLike[str], expected: Collection[str]) -> dict[str, Tensor]:
    """The vision tower of a whole student, by the names that are expected of it."""
    state = upgrade_state_dict(read_state_dict(path))
    return fit_expert_layers({name: tensor for name, tensor in state.items() if name.startswith(TOWER)}, expected)


def load_own_adapters(model: nn.Module, path: str | os.PathLike[str]) -> bool:
    """Fill a distiller's adapters from a whole checkpoint: its encoder_adapter.bin, or its own tensors as published.

    False if it has none, or those of another form, which is said. Every rank must call it.
    """
    targets = {name: tensor for name, tensor in _named_tensors(model) if name.startswith("adapters.")}
    file = find_file(path, ADAPTERS_FILE)
    source = Path(path) if file is None else file
    state = _adapters_among_weights(path) if file is None else read_part("adapters", file)
    if not state or not targets:
        return False
    state, targets = _of_shared_teachers(state, targets, source)
    try:
        copy_into(targets, _fitting(state, targets, "adapters", source))
    except CheckpointError:
        logger.warning(f"{source}: its adapters are of another form than this run's (--kd_heads), which start anew")
        return False
    return bool(targets)


def _adapters_among_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in find_weight_files(path):
        found |= {name: tensor for name, tensor in read_tensors(file).items() if ADAPTER_NAME.match(name)}
    return adapter_names(found)


def _of_shared_teachers(
    state: Mapping[str, Tensor], targets: Mapping[str, Tensor], file: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A file's adapters and a model's, both without the teachers that only one of them knows."""
    there, here = ({_teacher_of(name) for name in names} for names in (state, targets))
    if extra := there - here:
        logger.warning(f"{file}: the adapters of {', '.join(sorted(extra))} are left out, who do not teach in this run")
    if fresh := here - there:
        logger.warning(f"{file} has no adapters of {', '.join(sorted(fresh))}; theirs start anew")
    shared = there & here
    return (
        {name: tensor for name, tensor in state.items() if _teacher_of(name) in shared},
        {name: tensor for name, tensor in targets.items() if _teacher_of(name) in shared},
    )


def _teacher_of(name: str) -> str:
    """`adapters.eva.norm.weight` to `eva`."""
    return name.split(".")[1]


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters, and the buffers that a state dict holds (statistics of the teachers' features)."""
    buffers = dict(model.named_buffers())
    kept = [(name, buffers[name]) for name in model.state_dict() if name in buffers]
    return [*model.named_parameters(), *kept]


def is_of_part(name: str, part: str) -> bool:
    """Whether a tensor may stand in a part's file, by our names."""
    if part == "projector":
        return name.startswith((PROJECTOR, "model.vision_resampler.")) or name in (NEWLINE, EMBEDDINGS)
    if part == "mole":
        return MOLE_NAME.search(name) is not None
    return name.startswith("adapters.")


def _fitting(state: Mapping[str, Tensor], targets: Mapping[str, Tensor], part: str, file: Path) -> dict[str, Tensor]:
    optional = {NEWLINE, EMBEDDINGS}
    unknown = [name for name in state if name not in targets and not may_be_left_over(name, targets)]
    missing = [name for name in targets if name not in state and name not in optional]
    wrong = [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(full_shape(targets[name]))}"
        for name in targets.keys() & state.keys()
        if state[name].shape != full_shape(targets[name])
    ]
    if unknown or missing or wrong:
        raise CheckpointError(
            f"{file} does not fit the model's {part}: {len(missing)} tensors missing {missing[:4]}, "
            f"{len(unknown)} not known {unknown[:4]}, {len(wrong)} of the wrong shape {wrong[:4]}. "
            f"The model must be configured as it was when the file was written."
        )
    return {name: tensor for name, tensor in state.items() if name in targets}
