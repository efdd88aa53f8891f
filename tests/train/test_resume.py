"""A run that dies at any moment goes on as if nothing had happened."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava.train.resume import (
    MARKER,
    Engine,
    checkpoint_to_resume,
    checkpoints,
    complete_everywhere,
    defect,
    keep_newest,
    last_checkpoint,
    mark_complete,
)
from tests.train.runs import KILLED, RUN_FLAGS, STAGE_ONE, STAGE_TWO, World, command_line, run_whole_and_killed

ALONE = Engine("torch", 1)


def _checkpoint(folder: Path, step: int, engine: Engine = ALONE, resumable: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights.bin").write_bytes(b"x" * step)
    mark_complete(path, step, engine, resumable)
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


@pytest.mark.parametrize("name", ["torch", "zero2"])
def test_another_number_of_samples_a_step_is_refused(tmp_path: Path, name: str) -> None:
    path = _checkpoint(tmp_path, 2, Engine(name, 4, batch=64))
    assert checkpoint_to_resume(tmp_path, None, Engine(name, 4, batch=64)) == str(path)
    with pytest.raises(ValueError, match=r"64 samples a step, and this run has 128.*--gradient_accumulation_steps"):
        checkpoint_to_resume(tmp_path, None, Engine(name, 4, batch=128))


def test_a_checkpoint_that_does_not_say_its_batch_is_resumed(tmp_path: Path) -> None:
    """Earlier versions wrote none."""
    path = _checkpoint(tmp_path, 2)
    marker = json.loads((path / MARKER).read_text())
    del marker["engine"]["batch"]
    (path / MARKER).write_text(json.dumps(marker))
    assert checkpoint_to_resume(tmp_path, None, Engine("torch", 1, batch=64)) == str(path)


def test_machines_with_disks_of_their_own_go_on_from_what_all_of_them_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One was stopped between writing and marking its checkpoint."""
    for step in (2, 4):
        _checkpoint(tmp_path, step)
    other: list[str] = ["checkpoint-2"]
    monkeypatch.setattr("llava.train.resume.gather_objects", lambda own: [own, other])
    assert checkpoint_to_resume(tmp_path, None, ALONE) == str(tmp_path / "checkpoint-2")
    other.clear()
    with pytest.raises(ValueError, match=r"process 1 has none.*--save_on_each_node True"):
        complete_everywhere(tmp_path)


def test_old_checkpoints_go_only_when_newer_ones_are_complete(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        _checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-6" / MARKER).unlink()
    keep_newest(tmp_path, 1)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-6"]


def test_the_best_checkpoint_stays_however_old(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        _checkpoint(tmp_path, step)
    keep_newest(tmp_path, 1, best=str(tmp_path / "checkpoint-2"))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-6"]


def test_checkpoints_of_the_model_alone_are_cleared_away_too_and_never_resumed(tmp_path: Path) -> None:
    for step in (2, 4):
        _checkpoint(tmp_path, step, resumable=False)
    keep_newest(tmp_path, 1)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4"]
    assert checkpoint_to_resume(tmp_path, None, ALONE) is None
    with pytest.raises(ValueError, match="holds the model alone"):
        checkpoint_to_resume(tmp_path, str(tmp_path / "checkpoint-4"), ALONE)


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_losses(world: World, tmp_path: Path) -> None:
    """LoRA with dropout, so that the state of the random generators counts too."""
    lora = {"lora_enable": True, "lora_r": 4, "lora_dropout": 0.3, "data_path": world.folder / "chats.json"}
    flags = command_line(world.model_flags, RUN_FLAGS, STAGE_TWO, lora, KILLED)
    run_whole_and_killed(world, tmp_path, flags, 0)


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
    run_whole_and_killed(world, tmp_path, flags, 2)
