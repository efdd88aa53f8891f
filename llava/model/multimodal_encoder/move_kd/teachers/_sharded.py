"""Teachers whose weights are spread over the processes by a ZeRO-3 inference engine of their own."""

from collections.abc import Mapping
from typing import Any

import torch

from llava.model.multimodal_encoder.move_kd.teachers.base import FrozenTeacher, Teacher
from llava.model.multimodal_encoder.move_kd.types import Source, TeacherFeatures

SMALL = 100_000  # elements; norms and biases are not worth a message each


class ShardedTeacher:
    """A live teacher inside its engine. Every process must call it the same number of times."""

    def __init__(self, teacher: FrozenTeacher, keep_below: int = SMALL) -> None:
        """keep_below: tensors of fewer elements stay whole on every process."""
        import deepspeed

        self.name: str = teacher.name
        self.source: Source = teacher.source
        self.grid: tuple[int, int] = teacher.grid
        self.width: int = teacher.width
        self.digest: str = teacher.digest  # needs the whole weights, so before they are partitioned
        # No bf16/fp16 section: the engine would cast float32 buffers (rotary tables) as well.
        zero = {"stage": 3, "stage3_param_persistence_threshold": keep_below}
        config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
        self.engine, *_ = deepspeed.initialize(model=teacher, config=config)
        self.engine.eval()

    @torch.no_grad()
    def __call__(self, prepared: Any) -> TeacherFeatures:
        return self.engine(prepared)


def shard_teachers(teachers: Mapping[str, Teacher], keep_below: int = SMALL) -> dict[str, Teacher]:
    """Shard every live teacher that owns its weights; cached ones and one that shares the student's stay as they are.

    Raises RuntimeError when no process group is there.
    """
    if not torch.distributed.is_initialized():
        raise RuntimeError("teachers are sharded over processes: start a distributed run with deepspeed or torchrun")
    return {
        name: ShardedTeacher(teacher, keep_below)
        if isinstance(teacher, FrozenTeacher) and not teacher.shares_student
        else teacher
        for name, teacher in teachers.items()
    }
