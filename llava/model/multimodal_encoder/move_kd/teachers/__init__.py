"""From what the user typed to teachers: `build_teachers(["clip", "eva", "sam:size=512"], ...)`.

Every file here that is not `base` and has no underscore is a teacher; the error for an unknown name lists them.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from llava.model.multimodal_encoder.move_kd.plugins import load_plugin
from llava.model.multimodal_encoder.move_kd.teachers._sharded import ShardedTeacher, shard_teachers
from llava.model.multimodal_encoder.move_kd.teachers._spec import TeacherSpec, parse_dtype, parse_spec
from llava.model.multimodal_encoder.move_kd.teachers.base import BuildContext, FrozenTeacher, Teacher

logger = logging.getLogger(__name__)


def parse_specs(specs: Sequence[str], *, released: bool = False) -> list[TeacherSpec]:
    """Every spec checked, names unique. released: the published recipe's settings, below what the user wrote.

    Raises ValueError for an unknown teacher, an unknown key or two teachers of one name.
    """
    parsed: list[TeacherSpec] = []
    for text in specs:
        spec = parse_spec(text)
        teacher_class = load_plugin(__name__, spec.kind)
        if released:
            spec = parse_spec(text, teacher_class.defaults.released)
        if spec.name in {other.name for other in parsed}:
            raise ValueError(f"two teachers are called {spec.name!r}; give one of them name=...")
        parsed.append(spec)
    return parsed


def build_teacher(spec: TeacherSpec, context: BuildContext) -> FrozenTeacher:
    """One live teacher. Raises ValueError for weights that are missing, partial, wrong or corrupt."""
    return load_plugin(__name__, spec.kind)(spec, context)


def vouched_signature(spec: TeacherSpec, context: BuildContext, there: Mapping[str, Any]) -> dict[str, Any]:
    """See `FrozenTeacher.vouched`."""
    return load_plugin(__name__, spec.kind).vouched(spec, context, there)


def build_teachers(
    specs: Sequence[str],
    *,
    student_tower: nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    shared_dtype: torch.dtype | None = None,
    released: bool = False,
) -> dict[str, Teacher]:
    """Live teachers by name, in the order given.

    shared_dtype: what the student's base tower is in during training, if it stays frozen (and is not partitioned): a
    CLIP teacher of this dtype with the same weights uses its tensors. released: settings of the published recipe where
    a spec is silent.
    """
    context = BuildContext(dtype, torch.device(device), student_tower, shared_dtype)
    teachers: dict[str, Teacher] = {}
    for spec in parse_specs(specs, released=released):
        teacher = build_teacher(spec, context)
        shared = ", shared with the student" if teacher.shares_student else ""
        logger.info("teacher %s: %s, grid %s, width %d%s", spec.name, teacher.path, teacher.grid, teacher.width, shared)
        teachers[spec.name] = teacher
    return teachers
