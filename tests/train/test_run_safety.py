"""What protects a run: exact resumes, refusals, and messages that say what to do."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from llava.errors import NonFiniteLoss, readable_errors
from llava.model.checkpoint import read_state_dict, read_tower
from llava.train.records import DataError
from llava.train.resume import checkpoints, resumable
from tests.train.runs import (
    ROOT,
    RUN_FLAGS,
    STAGE_ONE,
    STAGE_TWO,
    World,
    clean_environment,
    command_line,
    losses,
    train_tiny,
)

PROJECTOR = "model.mm_projector.0.weight"


def test_rounded_training_resumes_from_unrounded_weights(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"bf16": True, "save_strategy": "steps", "save_steps": 2, "data_path": world.folder / "chats.json"}
    whole = train_tiny(world, tmp_path / "whole", monkeypatch, STAGE_TWO, flags)
    assert read_state_dict(whole)["lm_head.weight"].dtype == torch.bfloat16
    assert json.loads((whole / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert (
        load_file(whole / "checkpoint-2" / "trained_state.safetensors")["student.lm_head.weight"].dtype == torch.float32
    )
    broken = tmp_path / "broken"
    shutil.copytree(whole / "checkpoint-2", broken / "checkpoint-2")
    train_tiny(world, broken, monkeypatch, STAGE_TWO, flags)
    assert losses(broken) == losses(whole)


def test_rounded_training_begins_with_unrounded_weights(
    world: World, stage_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stage-1 file, and of a tower that trains beside a frozen language model."""
    parts = {"mm_tunable_parts": "mm_mlp_adapter,mm_vision_tower", "init_from": stage_one, "learning_rate": 0.0}
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    out = train_tiny(world, tmp_path, monkeypatch, {"version": "plain", "bf16": True}, parts, saving)
    state = load_file(out / "checkpoint-1" / "trained_state.safetensors")
    stored = read_tower(str(world.folder / "clip-tiny")) | torch.load(stage_one / "mm_projector.bin", weights_only=True)
    trained = [name.removeprefix("student.") for name in state]
    assert {"projector" in name for name in trained} == {True, False}
    assert all(torch.equal(state[f"student.{name}"], stored[name]) for name in trained)


@pytest.mark.parametrize("every", [1, 3])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    flags = {"learning_rate": 1e30, "logging_steps": every, "save_strategy": "steps", "save_steps": 2}
    with pytest.raises(NonFiniteLoss, match=r"lm not finite \d micro-batches before the last, in samples c\d+, c\d+"):
        train_tiny(world, tmp_path, monkeypatch, STAGE_ONE, flags)
    assert checkpoints(tmp_path) == []


def test_a_finished_run_started_again_trains_no_further(
    world: World, stage_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(stage_one, tmp_path / "again")
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    train_tiny(world, out, monkeypatch, STAGE_ONE, saving)
    assert losses(out) == losses(stage_one)
    assert torch.equal(
        torch.load(out / "mm_projector.bin", weights_only=True)[PROJECTOR],
        torch.load(stage_one / "mm_projector.bin", weights_only=True)[PROJECTOR],
    )


def test_a_checkpoint_of_another_stage_is_refused(
    world: World, stage_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(stage_one, tmp_path / "again")
    with pytest.raises(ValueError, match="trained other tensors"):
        train_tiny(world, out, monkeypatch, STAGE_TWO, {"max_steps": 8})


def test_a_checkpoint_of_another_batch_is_refused_unless_accumulation_makes_up_for_it(
    world: World, stage_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(stage_one, tmp_path / "again")
    half = {"per_device_train_batch_size": 1, "max_steps": 5}
    with pytest.raises(ValueError, match="2 samples a step, and this run has 1"):
        train_tiny(world, out, monkeypatch, STAGE_ONE, half)
    train_tiny(world, out, monkeypatch, STAGE_ONE, half, {"gradient_accumulation_steps": 2})
    assert len(losses(out)) == 5


def test_overwriting_the_output_directory_begins_again(
    world: World, stage_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(stage_one, tmp_path / "again")
    train_tiny(world, out, monkeypatch, STAGE_ONE, {"overwrite_output_dir": True, "max_steps": 1})
    assert checkpoints(out) == []
    assert len(losses(out)) == 1


@pytest.mark.parametrize("flag", ["data_path", "eval_data_path"])
def test_data_that_is_not_there_is_noticed_before_anything_is_loaded(
    flag: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava.train.train.build_student", lambda *_: pytest.fail("loaded the student"))
    with pytest.raises(DataError, match=r"capshuns\.json: does not exist"):
        train_tiny(world, tmp_path, monkeypatch, STAGE_ONE, {flag: world.folder / "{captions,capshuns}.json"})


def test_a_mistake_is_one_line_and_debugging_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAVA_DEBUG", raising=False)
    with pytest.raises(SystemExit) as stopped, readable_errors():
        raise ValueError("two\nlines")
    assert stopped.value.code == 1
    assert capsys.readouterr().err.splitlines() == ["error: two lines (LLAVA_DEBUG=1 shows the traceback)"]
    monkeypatch.setenv("LLAVA_DEBUG", "1")
    with pytest.raises(ValueError, match="two"), readable_errors():
        raise ValueError("two\nlines")


class _Broken(Dataset[None]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        try:
            raise KeyError("image")
        except KeyError as error:
            raise DataError("c1: no picture.\nPut it into --image_folder.") from error


def test_a_mistake_that_a_data_worker_finds_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAVA_DEBUG", raising=False)
    for workers in (0, 1):
        with pytest.raises(SystemExit), readable_errors():
            next(iter(DataLoader(_Broken(), num_workers=workers)))
        expected = "error: c1: no picture. Put it into --image_folder. (LLAVA_DEBUG=1 shows the traceback)"
        assert capsys.readouterr().err.splitlines() == [expected]


def test_an_interrupted_run_says_where_it_would_go_on(
    stage_one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, text in ((stage_one, "goes on from"), (tmp_path, "begins again")):
        with pytest.raises(SystemExit) as stopped, resumable(str(folder)):
            raise KeyboardInterrupt
        assert stopped.value.code == 130
        assert text in capsys.readouterr().err


WITHOUT_DEEPSPEED = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] == "deepspeed" else found(name, *rest)
sys.modules["deepspeed"] = None
from llava.train.train import main
main()
"""


def _without_deepspeed(world: World, out: Path, **more: str) -> subprocess.CompletedProcess[str]:
    data = {"data_path": world.folder / "captions.json", "output_dir": out}
    flags = command_line(world.model_flags, RUN_FLAGS, STAGE_ONE, data, more)
    code = [sys.executable, "-c", WITHOUT_DEEPSPEED, *flags]
    return subprocess.run(code, cwd=ROOT, capture_output=True, text=True, env=clean_environment(), check=False)


@pytest.mark.slow
def test_one_process_trains_without_deepspeed_installed(world: World, tmp_path: Path) -> None:
    done = _without_deepspeed(world, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(losses(tmp_path)) == 4
    refused = _without_deepspeed(world, tmp_path, deepspeed="scripts/zero2.json")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: --deepspeed: DeepSpeed is not installed")
