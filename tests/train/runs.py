"""A tiny world on disk for training tests, and runs of the real entry point on it, each in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava.train.environment import free_port
from tests.tiny import tiny_clip_folder, tiny_lm_folder

ROOT = Path(__file__).parents[2]
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


def start(flags: list[str], processes: int = 0, launcher: str = "torchrun") -> subprocess.Popen[str]:
    """`processes` 0 starts plain Python, else a launcher ("torchrun" or "deepspeed") with so many."""
    port = str(free_port())
    entry = [str(ROOT / "llava" / "train" / "train_mem.py"), *flags]
    if launcher == "torchrun":
        launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", port]
    else:
        launch = ["-m", "deepspeed.launcher.runner", "--num_gpus", str(processes), "--master_port", port]
    settings = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "LLAVA_DEBUG": "1",
        "PYTHONUNBUFFERED": "1",
    }
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.Popen(
        [sys.executable, *(launch if processes else []), *entry],
        env={**clean, **settings},
        cwd=ROOT,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str], timeout: float = 240) -> str:
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
