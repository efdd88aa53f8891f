"""What the playground's own small training loops share: a seed, a rate, a log with a progress bar."""

import json
import random
import time
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

FLUSH_STEPS = 10


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def cosine_rate(peak: float, step: int, steps: int, warmup: int = 30) -> float:
    """A linear warm-up, then a half cosine to zero."""
    warm = min(1.0, (step + 1) / min(warmup, steps))
    return peak * warm * 0.5 * (1 + float(np.cos(np.pi * step / steps)))


class TrainingLog:
    """Losses of a run, one JSON object a line, and a progress bar. Reads the loss only every few steps."""

    def __init__(self, path: Path, steps: int, title: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.steps = path, steps
        self.bar = tqdm(total=steps, desc=title, mininterval=1.0)
        self.losses: list[Tensor] = []
        self.start = time.monotonic()

    def __enter__(self) -> "TrainingLog":
        self.path.write_text("")
        return self

    def add(self, step: int, loss: Tensor) -> None:
        self.losses.append(loss.detach())
        self.bar.update()
        if len(self.losses) == FLUSH_STEPS or step + 1 == self.steps:
            mean = torch.stack(self.losses).mean().item()
            self.losses.clear()
            if not np.isfinite(mean):
                raise FloatingPointError(f"{self.bar.desc}: the loss is {mean} around step {step}")
            self.bar.set_postfix(loss=f"{mean:.3f}")
            entry = {"step": step + 1, "of": self.steps, "loss": mean, "seconds": time.monotonic() - self.start}
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
