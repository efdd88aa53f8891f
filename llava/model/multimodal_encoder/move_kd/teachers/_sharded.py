"""Teachers whose weights are spread over the processes by a ZeRO-3 inference engine of their own."""

from collections.abc import Mapping
from typing import Any

import torch

from llava.model.multimodal_encoder.move_kd.teachers.base import FrozenTeacher, Teacher
from llava.model.multimodal_encoder.move_kd.types import Source, TeacherFeatures


class ShardedTeacher:
    """A live teacher inside its engine. Every process must call it the same number of times."""

    def __init__(self, teacher: FrozenTeacher) -> None:
        import deepspeed

        self.name: str = teacher.name
        self.source: Source = teacher.source
        self.grid: tuple[int, int] = teacher.grid
        self.width: int = teacher.width
        self.digest: str = teacher.digest  # needs the whole weights, so before they are partitioned
        # No bf16/fp16 section: the engine would cast float32 buffers (rotary tables) as well.
        config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
        self.engine, *_ = deepspeed.initialize(model=teacher, config=config)
        self.engine.eval()

    @torch.no_grad()
    def __call__(self, prepared: Any) -> TeacherFeatures:
        return self.engine(prepared)


def shard_teachers(teachers: Mapping[str, Teacher]) -> dict[str, Teacher]:
    """Shard every live teacher that owns its weights; cached teachers and one that shares the student's stay as they are.

    Raises RuntimeError when no process group is there.
    """
    if not torch.distributed.is_initialized():
        raise RuntimeError(
            "teachers can be sharded in a distributed run only; start with a launcher (deepspeed, torchrun)"
        )
    return {
        name: ShardedTeacher(teacher) if isinstance(teacher, FrozenTeacher) and not teacher.shares_student else teacher
        for name, teacher in teachers.items()
    }
