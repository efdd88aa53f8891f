"""Two machines with disks of their own: each writes what it needs to go on, and what the next stage starts from."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.model.checkpoint_io import read_tensors
from llava.train.environment import free_port
from llava.train.resume import MARKER
from tests.tiny_teachers import make_eva
from tests.train.runs import ROOT, RUN_FLAGS, STAGE_ONE, STAGE_TWO, World, clean_environment, command_line, losses

pytestmark = pytest.mark.slow


def run_nodes(flags: list[str], disks: list[Path]) -> None:
    """One process per machine, all on this one, each with its own output directory."""
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(disks)), "--node_rank", str(node),
             "--master_addr", "127.0.0.1", "--master_port", port, "--nproc_per_node", "1",
             str(ROOT / "llava" / "train" / "train_mem.py"), *flags, "--output_dir", str(disk)],
            env=clean_environment(LLAVA_DEBUG="1"), cwd=ROOT, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for node, disk in enumerate(disks)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=300)[0] for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
        raise
    assert not any(process.returncode for process in processes), "\n".join(text[-6000:] for text in printed)


@pytest.mark.parametrize(
    ("stage", "config", "files"),
    [
        ({**STAGE_ONE, "tune_encoder": True}, "zero2", {"mm_projector.bin", "mole_encoder.bin", "encoder_adapter.bin"}),
        (
            {**STAGE_TWO, "tune_encoder": True, "lora_enable": True, "lora_r": 4},
            "zero3",
            {"adapter_model.safetensors", "non_lora_trainables.bin", "encoder_adapter.bin"},
        ),
    ],
    ids=["stage 1", "LoRA"],
)
def test_each_machine_writes_everything_and_all_resume_from_the_same_step(
    stage: dict[str, Any], config: str, files: set[str], world: World, tmp_path: Path
) -> None:
    extra = {
        "data_path": world.folder / "captions.json",
        "encoder_teachers": ["clip", f"eva:path={make_eva(tmp_path)},size=64"],
        "moe_encoder_lora_rank": 4,
        "deepspeed": f"scripts/{config}.json",
        "save_on_each_node": True,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
        "group_by_modality_length": False,
    }
    flags = command_line(world.model_flags, RUN_FLAGS, stage, extra)
    whole, broken = ([tmp_path / name / node for node in ("first", "second")] for name in ("whole", "broken"))
    run_nodes(flags, whole)
    for disk in whole:
        assert files <= {path.name for path in disk.iterdir()}
    for name in files:
        one, two = (read_tensors(disk / name) for disk in whole)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    for disk, copy in zip(whole, broken, strict=True):
        for step in (2, 4):
            shutil.copytree(disk / f"checkpoint-{step}", copy / f"checkpoint-{step}")
    (broken[1] / "checkpoint-4" / MARKER).unlink()  # the second machine was stopped before its mark
    run_nodes(flags, broken)
    assert losses(broken[0]) == losses(whole[0])
    assert len(losses(broken[0])) == 6
