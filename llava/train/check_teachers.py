"""Load teachers, run each on a picture, and say what they are.

    python -m llava.train.check_teachers clip eva:path=EVA.pth sam:path=DIR,size=512 --dtype bf16

Prints one row per teacher: parameters, grid, tokens, width, image size, memory, milliseconds per image, digest of
the weights, licence. Status 1 if any of them cannot be used, each named with the reason.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from PIL import Image
from torch import Tensor

from llava.model.multimodal_encoder.move_kd.plugins import plugin_names
from llava.model.multimodal_encoder.move_kd.teachers import build_teachers, parse_dtype
from llava.model.multimodal_encoder.move_kd.teachers.base import FrozenTeacher
from llava.model.multimodal_encoder.move_kd.types import View, stack

TEACHERS = "llava.model.multimodal_encoder.move_kd.teachers"
HEADINGS = ("teacher", "parameters", "grid", "tokens", "width", "image", "memory", "ms/image", "digest", "licence")


@dataclass(frozen=True)
class Report:
    """memory: bytes of the weights, or on a GPU the most that was in use while the pictures were encoded."""

    name: str
    parameters: int
    grid: tuple[int, int]
    width: int
    size: int
    memory: int
    milliseconds: float
    digest: str
    licence: str

    def row(self) -> tuple[str, ...]:
        return (
            self.name,
            _short(self.parameters),
            f"{self.grid[0]} x {self.grid[1]}",
            str(self.grid[0] * self.grid[1]),
            str(self.width),
            f"{self.size} px",
            f"{_short(self.memory)}B",
            f"{self.milliseconds:,.1f}",
            self.digest[:16],
            self.licence,
        )


def _short(count: float) -> str:
    for unit in ("", "k", "M"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} G"


def examine(teacher: FrozenTeacher, device: torch.device, batch_size: int, repeats: int) -> Report:
    """Run a teacher on random pictures. Raises ValueError if its features are not what it says they are."""
    noise = np.random.default_rng(0).integers(0, 256, (batch_size, teacher.size, teacher.size, 3), dtype=np.uint8)
    views = [View(Image.fromarray(pixels), "squash") for pixels in noise]
    pictures = send_to_device(stack([teacher.source.prepare(view) for view in views]), device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    _check_features(teacher, pictures, batch_size)
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        teacher(pictures)
    _wait(device)
    elapsed = time.perf_counter() - start
    parameters = list(teacher.parameters())
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return Report(
        name=teacher.name,
        parameters=sum(parameter.numel() for parameter in parameters),
        grid=teacher.grid,
        width=teacher.width,
        size=teacher.size,
        memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else weights,
        milliseconds=1000 * elapsed / (repeats * batch_size),
        digest=teacher.digest,
        licence=teacher.defaults.licence,
    )


def _check_features(teacher: FrozenTeacher, pictures: Any, count: int) -> None:
    features = teacher(pictures)
    expected = (count, teacher.grid[0] * teacher.grid[1], teacher.width)
    if features.patches.shape != expected:
        raise teacher.refuse(f"gives features of shape {tuple(features.patches.shape)}, and says {expected}")
    for key, value in features._asdict().items():
        if isinstance(value, Tensor) and not value.isfinite().all():
            raise teacher.refuse(f"gives {key} that are not finite in {teacher.dtype}; try dtype=bf16 or dtype=fp32")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(reports: Sequence[Report]) -> str:
    rows = [HEADINGS, *(report.row() for report in reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def check(specs: Sequence[str], options: argparse.Namespace) -> tuple[list[Report], list[str]]:
    """(reports, failures); one teacher is in memory at a time."""
    reports, failures = [], []
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for spec in specs:
        settings: dict[str, Any] = {"dtype": options.dtype, "device": device, "released": options.released}
        try:
            (teacher,) = build_teachers([spec], **settings).values()
            assert isinstance(teacher, FrozenTeacher)
            reports.append(examine(teacher, device, options.batch_size, options.repeats))
        except (ValueError, RuntimeError) as error:
            failures.append(f"{spec}: {error}")
    return reports, failures


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava.train.check_teachers",
        description="Load teachers, run each on a picture, and say what they are.",
        epilog=f"teachers: {', '.join(plugin_names(TEACHERS))}",
    )
    parser.add_argument("teachers", nargs="+", help="specs as for --encoder_teachers, such as sam:path=DIR,size=512")
    parser.add_argument("--dtype", type=parse_dtype, default=torch.float32, help="fp32, bf16 or fp16")
    parser.add_argument("--device", default=None, help="default: the GPU if there is one")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="timed runs")
    parser.add_argument("--released", action="store_true", help="settings of the published recipe")
    options = parser.parse_args(list(argv))
    if options.batch_size < 1 or options.repeats < 1:
        parser.error(f"--batch_size {options.batch_size} --repeats {options.repeats}: both must be at least 1")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every teacher can be used, else 1."""
    options = parse_options(sys.argv[1:] if argv is None else argv)
    reports, failures = check(options.teachers, options)
    if reports:
        print(table(reports))
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
