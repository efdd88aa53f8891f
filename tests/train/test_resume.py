"""A run that dies at any moment goes on as if nothing had happened."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava.train.resume import (
    MARKER,
    Engine,
    checkpoint_to_resume,
    checkpoints,
    defect,
    keep_newest,
    last_checkpoint,
    mark_complete,
)
from tests.train.runs import RUN_FLAGS, STAGE_ONE, STAGE_TWO, World, command_line, losses, run, start

ALONE = Engine("torch", 1)


def _checkpoint(folder: Path, step: int, engine: Engine = ALONE) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights.bin").write_bytes(b"x" * step)
    mark_complete(path, step, engine)
    return path


def test_the_newest_complete_checkpoint_is_resumed(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        _checkpoint(tmp_path, step)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_a_checkpoint_without_its_marker_is_skipped(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 2)
    (_checkpoint(tmp_path, 4) / MARKER).unlink()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


@pytest.mark.parametrize("content", [b"", b"xxxxx"])
def test_a_checkpoint_with_a_file_of_another_size_is_skipped(tmp_path: Path, content: bytes) -> None:
    _checkpoint(tmp_path, 2)
    (_checkpoint(tmp_path, 4) / "weights.bin").write_bytes(content)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert "weights.bin" in str(defect(tmp_path / "checkpoint-4"))


def test_a_checkpoint_whose_marker_is_garbage_is_skipped(tmp_path: Path) -> None:
    (_checkpoint(tmp_path, 4) / MARKER).write_text("{")
    assert last_checkpoint(tmp_path) is None


def test_asking_for_a_broken_checkpoint_is_an_error(tmp_path: Path) -> None:
    (_checkpoint(tmp_path, 4) / MARKER).unlink()
    with pytest.raises(ValueError, match=MARKER):
        checkpoint_to_resume(tmp_path, str(tmp_path / "checkpoint-4"), ALONE)
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        checkpoint_to_resume(tmp_path, "True", ALONE)


def test_shards_of_another_engine_are_refused(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 2, Engine("zero2", 8))
    with pytest.raises(ValueError, match="zero2 with 8 processes"):
        checkpoint_to_resume(tmp_path, None, Engine("zero2", 4))
    assert checkpoint_to_resume(tmp_path, "False", Engine("zero2", 4)) is None


def test_without_shards_the_number_of_processes_may_change(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path, 2, Engine("torch", 2))
    assert checkpoint_to_resume(tmp_path, None, ALONE) == str(path)


def test_old_checkpoints_go_only_when_newer_ones_are_complete(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        _checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-6" / MARKER).unlink()
    keep_newest(tmp_path, 1)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-6"]
    keep_newest(tmp_path, 1, best=str(tmp_path / "checkpoint-4"))
    assert len(checkpoints(tmp_path)) == 2


def _run_to_the_end_and_killed(world: World, folder: Path, flags: list[str], processes: int) -> None:
    """Two runs of the same flags, one of them killed at a random step and started again: they must be equal."""
    whole, broken = folder / "whole", folder / "broken"
    run([*flags, "--output_dir", str(whole)], processes)
    process = start([*flags, "--output_dir", str(broken)], processes)
    step = random.randint(3, 11)
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += "'loss'" in line
        if seen == step:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.wait()
    assert not (broken / "trainer_state.json").exists(), f"killed too late, at step {step}"
    output = run([*flags, "--output_dir", str(broken)], processes)
    resumed = [line for line in output.splitlines() if "'loss'" in line]
    assert len(resumed) < 12, f"killed at step {step}, and began again instead of resuming"
    assert losses(broken) == losses(whole), f"killed at step {step}"
    _assert_equal_weights(whole, broken)


def _assert_equal_weights(first: Path, second: Path) -> None:
    for name in ("model.safetensors", "adapter_model.safetensors"):
        if (first / name).exists():
            expected, found = load_file(first / name), load_file(second / name)
            assert expected.keys() == found.keys()
            assert all(torch.equal(expected[key], found[key]) for key in expected)
    expected, found = (torch.load(folder / "mm_projector.bin", weights_only=True) for folder in (first, second))
    assert all(torch.equal(expected[key], found[key]) for key in expected)


KILLED: dict[str, Any] = {"max_steps": 12, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_losses(world: World, tmp_path: Path) -> None:
    """LoRA with dropout, so that the state of the random generators counts too."""
    lora = {"lora_enable": True, "lora_r": 4, "lora_dropout": 0.3, "data_path": world.folder / "chats.json"}
    flags = command_line(world.model_flags, RUN_FLAGS, STAGE_TWO, lora, KILLED)
    _run_to_the_end_and_killed(world, tmp_path, flags, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "data", "config"), [
    (STAGE_ONE, "captions", "zero2.json"),
    (STAGE_TWO, "chats", "zero3.json"),
])  # fmt: skip
def test_killed_sharded_processes_resume_to_the_same_losses(
    world: World, tmp_path: Path, stage: dict[str, Any], data: str, config: str
) -> None:
    extra = {"data_path": world.folder / f"{data}.json", "deepspeed": f"scripts/{config}"}
    flags = command_line(world.model_flags, RUN_FLAGS, stage, extra, KILLED)
    _run_to_the_end_and_killed(world, tmp_path, flags, 2)
