"""Distilling runs that are killed at a random step go on to the same losses and files."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.train.distillation.conftest import FINETUNE, PRETRAIN, SETTINGS
from tests.train.runs import (
    KILLED,
    RUN_FLAGS,
    World,
    command_line,
    one_rank_without_pictures,
    run_whole_and_killed,
)

pytestmark = pytest.mark.slow
QLORA = {"tune_all": False, "finetune": False, "lora_enable": True, "lora_r": 4, "lora_alpha": 8, "bits": 4}


def test_one_process_with_dropout_and_accumulation(world: World, teachers: dict[str, str], tmp_path: Path) -> None:
    flags = {
        "encoder_teachers": ["clip", teachers["eva"], teachers["convnext"]],
        "kd_objectives": ["teacher_dropping=4"],
        "data_path": world.folder / "chats.json",
        "gradient_accumulation_steps": 2,
        "moe_dropout": 0.3,
        "bf16": True,
    }
    run_whole_and_killed(world, tmp_path, _command(world, FINETUNE, flags), 0)


def test_two_processes_under_zero2(world: World, teachers: dict[str, str], tmp_path: Path) -> None:
    flags = {
        "encoder_teachers": [teachers["eva"], teachers["sam"]],
        "data_path": world.folder / "captions.json",
        "deepspeed": "scripts/zero2.json",
        "bf16": True,
    }
    run_whole_and_killed(world, tmp_path, _command(world, PRETRAIN, flags), 2)


@pytest.mark.parametrize("pictures", [1, 2])
def test_two_processes_under_zero3_with_sharded_teachers_and_one_without_pictures(
    pictures: int, world: World, teachers: dict[str, str], pretrained: Path, tmp_path: Path
) -> None:
    flags = {
        "encoder_teachers": ["clip", teachers["eva"]],
        "init_from": pretrained,
        "data_path": with_pictures(pictures, one_rank_without_pictures(world, tmp_path)),
        "deepspeed": "scripts/zero3.json",
        "shard_teachers": True,
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": "[[28, 56], [56, 28]]",
        "mm_patch_merge_type": "spatial_unpad",
        "distill_views": "all",
        "group_by_modality_length": False,
        "per_device_train_batch_size": 1,
        "model_max_length": 256,
    }
    run_whole_and_killed(world, tmp_path, _command(world, FINETUNE, flags), 2)


@pytest.mark.parametrize("engine", [{}, {"deepspeed": "scripts/zero2.json"}], ids=["ddp", "zero2"])
def test_two_processes_with_qlora_beside_experts(
    engine: dict[str, Any], world: World, teachers: dict[str, str], pretrained: Path, tmp_path: Path
) -> None:
    flags = {
        "encoder_teachers": ["clip", teachers["eva"]],
        "init_from": pretrained,
        "data_path": world.folder / "chats.json",
        **engine,
    }
    run_whole_and_killed(world, tmp_path, _command(world, FINETUNE, QLORA | flags), 2)


def with_pictures(count: int, path: Path) -> Path:
    """The same records, where every other sample with a picture has `count` of them."""
    records = json.loads(path.read_text())
    seen = [record for record in records if "image" in record]
    for index, record in enumerate(seen):
        if count > 1 and index % 2:
            others = [seen[(index + step) % len(seen)]["image"] for step in range(1, count)]
            names = [name if isinstance(name, str) else name[0] for name in others]
            record["image"] = [record["image"], *names]
            record["conversations"][0]["value"] = "<image>\n" * (count - 1) + record["conversations"][0]["value"]
    path.write_text(json.dumps(records))
    return path


def _command(world: World, stage: dict[str, Any], flags: dict[str, Any]) -> list[str]:
    return command_line(world.model_flags, RUN_FLAGS, stage, SETTINGS, flags, KILLED)
