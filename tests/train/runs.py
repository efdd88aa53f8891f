"""A tiny world on disk for training tests, and runs of the real entry point on it, each in processes of their own."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from llava.train.environment import free_port
from llava.train.order import ShuffledSampler
from tests.tiny import tiny_clip_folder, tiny_lm_folder

ROOT = Path(__file__).parents[2]
SEED = 42  # transformers' default
COLORS = ("red", "green", "blue", "white")


@dataclass(frozen=True)
class World:
    """folder: holds `llama-tiny`, `clip-tiny`, `images`, `captions.json`, `chats.json`, `texts.json`."""

    folder: Path

    @property
    def model_flags(self) -> dict[str, Any]:
        return {
            "model_name_or_path": self.folder / "llama-tiny",
            "vision_tower": self.folder / "clip-tiny",
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            "image_folder": self.folder / "images",
            "model_max_length": 128,
        }


RUN_FLAGS = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "report": False,
    "dataloader_num_workers": 0,
    "disable_tqdm": True,
}
STAGE_ONE = {"version": "plain", "tune_mm_mlp_adapter": True}
STAGE_TWO = {"version": "v1", "image_aspect_ratio": "pad", "group_by_modality_length": True}


def make_world(folder: Path, samples: int = 16) -> World:
    tiny_lm_folder(folder)
    tiny_clip_folder(folder)
    (folder / "images").mkdir()
    captions, chats, texts = [], [], []
    for index in range(samples):
        color = COLORS[index % len(COLORS)]
        pixels = np.random.default_rng(index).integers(0, 255, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        captions.append(_record(f"c{index}", [("human", "<image>\nDescribe."), ("gpt", f"a {color} thing")], index))
        chats.append(_record(f"v{index}", [("human", "<image>\nColor?"), ("gpt", color)], index))
        texts.append(_record(f"t{index}", [("human", f"Say {color} {index}."), ("gpt", f"{color} it is")], None))
    for name, records in (("captions", captions), ("chats", chats + texts[:6]), ("texts", texts)):
        (folder / f"{name}.json").write_text(json.dumps(records))
    return World(folder)


def _record(name: str, turns: list[tuple[str, str]], image: int | None) -> dict[str, Any]:
    record: dict[str, Any] = {"id": name, "conversations": [{"from": who, "value": text} for who, text in turns]}
    return record if image is None else record | {"image": f"{image}.png"}


def command_line(*groups: dict[str, Any]) -> list[str]:
    """Flags of several groups as an argument list; a later group wins."""
    merged: dict[str, Any] = {}
    for group in groups:
        merged |= group
    return [word for name, value in merged.items() for word in (f"--{name}", *_words(value))]


def _words(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]


def train_in_process(flags: list[str], monkeypatch: Any) -> None:
    """The entry point in this process: fast, and a failure has its traceback."""
    from llava.train.train import train

    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    train()


def train_tiny(world: World, out: Path, monkeypatch: Any, *groups: dict[str, Any]) -> Path:
    """A run on the captions of `world` (unless `groups` say otherwise) that writes to `out`, which is returned."""
    data = {"data_path": world.folder / "captions.json", "output_dir": out}
    train_in_process(command_line(world.model_flags, RUN_FLAGS, data, *groups), monkeypatch)
    return out


def clean_environment(**more: str) -> dict[str, str]:
    """This process's variables without those of a launcher, and quiet, offline and single-threaded."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "LLAVA_DEBUG")
    kept = {name: value for name, value in os.environ.items() if name not in launcher}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **more}


def start(flags: list[str], processes: int = 0, launcher: str = "torchrun") -> subprocess.Popen[str]:
    """`processes` 0 starts plain Python, else a launcher ("torchrun" or "deepspeed") with so many."""
    port = str(free_port())
    entry = [str(ROOT / "llava" / "train" / "train_mem.py"), *flags]
    if launcher == "torchrun":
        launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", port]
    else:
        launch = ["-m", "deepspeed.launcher.runner", "--num_gpus", str(processes), "--master_port", port]
    return subprocess.Popen(
        [sys.executable, *(launch if processes else []), *entry],
        env=clean_environment(LLAVA_DEBUG="1", PYTHONUNBUFFERED="1"),
        cwd=ROOT,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str], timeout: float = 480) -> str:
    """What it printed. Raises AssertionError with that if it failed."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, output[-6000:]
    return output


def run(flags: list[str], processes: int = 0, launcher: str = "torchrun") -> str:
    return finish(start(flags, processes, launcher))


def losses(output_dir: Path) -> list[float]:
    """The loss of every logged step, from trainer_state.json."""
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


# Flags of a run to be killed.
KILLED: dict[str, Any] = {"max_steps": 12, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}


def run_whole_and_killed(world: World, folder: Path, flags: list[str], processes: int) -> None:
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
    assert_equal_weights(whole, broken)


def assert_equal_weights(first: Path, second: Path) -> None:
    for name in ("model.safetensors", "adapter_model.safetensors"):
        if (first / name).exists():
            expected, found = load_file(first / name), load_file(second / name)
            assert expected.keys() == found.keys()
            assert all(torch.equal(expected[key], found[key]) for key in expected)
    for file in first.glob("*.bin"):
        expected, found = (torch.load(folder / file.name, weights_only=True) for folder in (first, second))
        assert all(torch.equal(expected[key], found[key]) for key in expected), file.name


def one_rank_without_pictures(world: World, folder: Path) -> Path:
    """Records whose order, in batches of one for two processes, gives the second process text alone."""
    pictures = json.loads((world.folder / "captions.json").read_text())
    texts = json.loads((world.folder / "texts.json").read_text())
    count = 2 * min(len(pictures), len(texts))
    records: list[Any] = [None] * count
    for position, index in enumerate(ShuffledSampler(count, SEED)):
        records[index] = (texts if position % 2 else pictures)[position // 2]
    path = folder / "mixed.json"
    path.write_text(json.dumps(records))
    return path
