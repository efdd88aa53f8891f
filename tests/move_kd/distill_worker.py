"""Run by two processes: the same distillation under ZeRO-0 and ZeRO-3, with a process that sees no picture at all."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed.ops
import torch

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled for two minutes, for nothing here

import deepspeed  # noqa: E402

from llava.constants import IMAGE_TOKEN_INDEX  # noqa: E402
from llava.model.multimodal_encoder.move_kd.config import DistillConfig, MoLEConfig  # noqa: E402
from llava.model.multimodal_encoder.move_kd.distiller import Distiller  # noqa: E402
from llava.model.multimodal_encoder.move_kd.types import TeacherFeatures  # noqa: E402
from llava.train.environment import leave_processes  # noqa: E402
from tests.move_kd.fakes import teachers  # noqa: E402
from tests.tiny import NUM_PATCHES, VISION_WIDTH, tiny_images, tiny_llava  # noqa: E402

RANK = int(os.environ["RANK"])
EVA = teachers("eva")["eva"]


class ClipShape:
    grid, width = (int(NUM_PATCHES**0.5),) * 2, VISION_WIDTH


def build(folder: Path) -> Distiller:
    torch.manual_seed(0)
    moe = MoLEConfig(rank=2, init_b="kaiming", gate="top1_ste").to_dict()
    student = tiny_llava(folder, moe=moe).train()
    student.requires_grad_(True)
    distiller = Distiller(student, {"clip": ClipShape, "eva": EVA}, DistillConfig())
    distiller.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # One expert that no token chooses, on one process and not on the other.
    with torch.no_grad():
        for name, parameter in distiller.named_parameters():
            if name.endswith("router.bias"):
                parameter.copy_(torch.tensor([0.0, -20.0, 0.0]))
    return distiller


def batch(step: int) -> dict[str, Any]:
    """Rank 1 has nothing but text in the second step."""
    torch.manual_seed(100 * step + RANK)
    blank = RANK == 1 and step == 1
    ids = torch.randint(3, 50, (2, 6))
    if not blank:
        ids[:, 1] = IMAGE_TOKEN_INDEX
    labels = ids.clone()
    labels[:, :3] = -100
    weight = torch.full((2,), 0.0 if blank else 1.0)
    attention = torch.rand(2, NUM_PATCHES).softmax(-1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids, dtype=torch.bool),
        "labels": labels,
        "images": tiny_images(2) * weight.view(-1, 1, 1, 1),
        "distill": {"tile_index": torch.arange(2), "weight": weight, "tile_weight": weight},
        "features": {
            "clip": TeacherFeatures(
                torch.randn(2, NUM_PATCHES, VISION_WIDTH), ClipShape.grid, torch.randn(2, VISION_WIDTH), attention
            ),
            "eva": TeacherFeatures(torch.randn(2, 64, EVA.width), EVA.grid),
        },
    }


def train(stage: int, folder: Path, half: bool = False) -> dict[str, Any]:
    distiller = build(folder)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "bf16": {"enabled": half},
    }
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=distiller, optimizer=optimizer, config=config)
    losses = []
    for step in range(3):
        distiller.collect_metrics = step == 2
        inputs = batch(step)
        if half:
            inputs["images"] = inputs["images"].bfloat16()
        answer = engine(**inputs)
        engine.backward(answer["loss"])
        engine.step()
        losses.append({name: value.item() for name, value in answer["terms"].items()})
    statistics = distiller.adapters["eva"].statistics
    kinds = sorted({str(buffer.dtype) for _, buffer in distiller.adapters.named_buffers()})
    found = {"losses": losses, "mean": statistics.mean.tolist(), "images": statistics.count.item(), "buffers": kinds}
    engine.destroy()
    return found


def main() -> None:
    folder = Path(sys.argv[1]) / f"rank{RANK}"
    folder.mkdir()
    deepspeed.init_distributed(dist_backend="gloo")
    report = {
        "plain": train(0, folder / "plain"),
        "sharded": train(3, folder / "sharded"),
        "half": train(3, folder / "half", half=True),
    }
    (folder / "report.json").write_text(json.dumps(report))
    leave_processes()


if __name__ == "__main__":
    main()
