"""The full-size step on a GPU: `python scripts/benchmarks/step.py --full --workers 12`.

CLIP-L at 336 px, EVA-02-L, ConvNeXt-XXL and SAM-L at 1024 px, a 7B language model, random weights, bfloat16, gradient
checkpointing, with and without teachers. Model FLOPs count forward passes of the teachers once and those of the student
two times where its weights are frozen in a stage (pretrain), three times where they train; what checkpointing computes
again is not counted. Nothing else should use the GPU.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sizes import SIZES
from step import parts_table
from timing import machine, table
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from variants import Settings, Variant, our_variant, plain_variant

# Dense bfloat16 TFLOP/s by a word in the device's name.
PEAK_TFLOPS = {"H100": 989, "H200": 989, "H800": 989, "A100": 312, "A800": 312, "B200": 2250, "L40S": 362, "4090": 165}
WARM_UP, PARTS_STEPS = 3, 3


class Result(NamedTuple):
    """tflops: model FLOPs of one image, times 1e12. memory: most that was allocated, in GiB."""

    name: str
    images_per_second: float
    tflops: float
    memory: float
    parts: str
    profile: str


def run_full(args: argparse.Namespace) -> None:
    """Raises SystemExit where there is no GPU for full sizes."""
    name = args.sizes or "full"
    if name == "full" and not torch.cuda.is_available():
        raise SystemExit("--full needs a GPU: full sizes do not fit a CPU's day. Without one, leave --full out.")
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = args.peak_tflops or next((peak for word, peak in PEAK_TFLOPS.items() if word in machine(device)), None)
    results = []
    for build in (plain_variant, our_variant):
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(
                sizes=SIZES[name],
                teachers=args.teachers,
                stage=args.stage,
                dtype=torch.bfloat16,
                device=device,
                batch=args.batch,
                workers=args.workers,
                folder=Path(folder),
                checkpointing=True,
            )
            results.append(measure(build, settings, args.steps))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(
        f"{machine(device)}; torch {torch.__version__}, bfloat16, stage {args.stage}, batch {args.batch}, "
        f"{args.workers} data workers, {args.steps} steps\n{SIZES[name].text()}\n"
    )
    print(overview(results, peak))
    for result in results:
        print(f"\nMilliseconds per image and share of the step, {result.name}:\n\n{result.parts}")
    print(f"\nWhat is left, by kernel, {results[-1].name}:\n\n{results[-1].profile}")


def overview(results: list[Result], peak: float | None) -> str:
    plain = results[0].images_per_second
    rows = [
        (
            result.name,
            f"{result.images_per_second:.2f}",
            f"{plain / result.images_per_second - 1:+.0%}",
            f"{result.tflops:.1f}",
            "-" if peak is None else f"{result.images_per_second * result.tflops / peak:.1%}",
            f"{result.memory:.1f}",
        )
        for result in results
    ]
    return table(("variant", "images/s", "time over plain", "TFLOP/image", "MFU", "peak GiB"), rows)


def measure(build: Callable[[Settings], Variant], settings: Settings, steps: int) -> Result:
    """Builds a variant, and lets it go again before the next one is built."""
    is_gpu = settings.device.type == "cuda"
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    variant = build(settings)
    batches = iter(variant.loader(WARM_UP + steps + PARTS_STEPS + 2))
    speed = images_per_second(variant, batches, steps, settings)
    memory = torch.cuda.max_memory_allocated() / 2**30 if is_gpu else 0.0
    variant.clock.synchronize = is_gpu
    variant.clock.seconds.clear()
    for _ in range(PARTS_STEPS):
        with variant.clock.part("data wait"):
            batch = next(batches)
        variant.step(batch)
    parts = parts_table({variant.name: variant.shares()}, PARTS_STEPS * settings.batch)
    activities = [ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]
    with profile(activities=activities) as recorded:
        variant.step(next(batches))
    order = "self_device_time_total" if is_gpu else "self_cpu_time_total"
    kernels = recorded.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=60)
    tflops = model_flops(variant, next(batches), settings) / settings.batch / 1e12
    return Result(variant.name, speed, tflops, memory, parts, kernels)


def images_per_second(variant: Variant, batches: Any, steps: int, settings: Settings) -> float:
    """After a warm-up, waiting for the device only at the ends."""
    for _ in range(WARM_UP):
        variant.step(next(batches))
    start = _now(settings)
    for batch in _take(batches, steps):
        variant.step(batch)
    return steps * settings.batch / (_now(settings) - start)


def _take(batches: Any, count: int) -> Iterable[Any]:
    return (next(batches) for _ in range(count))


def _now(settings: Settings) -> float:
    if settings.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def model_flops(variant: Variant, batch: Any, settings: Settings) -> float:
    """Of one step: the whole forward pass, and its backward pass by rule."""
    with FlopCounterMode(display=False) as counter:
        variant.forward(batch)
    counts = counter.get_flop_counts()
    student = sum(counts["Distiller"].values())
    return counter.get_total_flops() + student * (1 if settings.stage == "pretrain" else 2)
