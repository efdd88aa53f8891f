"""Run by two processes: a student and its teachers, each in a ZeRO-3 engine of its own, train beside each other."""

import json
import os
import sys
from pathlib import Path

import deepspeed.ops
import torch

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled for two minutes, for nothing here

import deepspeed  # noqa: E402
from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled  # noqa: E402

from llava.model.multimodal_encoder.move_kd.teachers import build_teachers, shard_teachers  # noqa: E402
from llava.model.multimodal_encoder.move_kd.teachers._sharded import ShardedTeacher  # noqa: E402
from llava.train.environment import leave_processes  # noqa: E402

CONFIG = {
    "train_micro_batch_size_per_gpu": 2,
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {"stage": 3},
}


def run(specs: list[str], steps: int = 2) -> dict[str, object]:
    rank = int(os.environ["RANK"])
    plain = build_teachers(specs)
    active = HfDeepSpeedConfig(CONFIG)  # from here on transformers partitions what it loads, except teachers
    sharded = shard_teachers(build_teachers(specs), keep_below=0)
    still_active = is_deepspeed_zero3_enabled()
    del active
    student = torch.nn.Linear(32, 32)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=student, optimizer=optimizer, config=CONFIG)
    report: dict[str, object] = {"zero3_restored": still_active, "losses": []}
    for step in range(steps):
        generator = torch.Generator().manual_seed(10 * step + rank)
        loss = torch.zeros(())
        for name, teacher in sharded.items():
            size = teacher.source.size
            count = 1 + (rank + step) % 2  # the processes see different numbers of pictures
            prepared = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
            features = teacher(prepared)
            expected = plain[name](prepared)
            report[f"{name}_equal"] = torch.equal(features.patches, expected.patches)
            report[f"{name}_digest"] = teacher.digest == plain[name].digest
            if teacher.width == 32:
                target = features.patches.float()
                loss = loss + (engine(target.detach()) - target).square().mean()
        engine.backward(loss)
        engine.step()
        report["losses"].append(loss.item())
    report["resident"] = {
        name: sum(parameter.numel() for parameter in teacher.engine.module.parameters())
        for name, teacher in sharded.items()
        if isinstance(teacher, ShardedTeacher)
    }
    return report


if __name__ == "__main__":
    deepspeed.init_distributed(dist_backend="gloo" if not torch.cuda.is_available() else "nccl")
    result = run(sys.argv[2:])
    Path(sys.argv[1], f"rank{os.environ['RANK']}.json").write_text(json.dumps(result))
    leave_processes()
