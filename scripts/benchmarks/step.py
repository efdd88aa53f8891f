"""A whole distillation step: ours against one built the released way, at equal sizes.

    python scripts/benchmarks/step.py                       # paced sizes, CPU, bfloat16
    python scripts/benchmarks/step.py --sizes reduced       # everything reduced, pictures too
    python scripts/benchmarks/step.py --full                # full sizes on a GPU: see full.py

A round trains one short epoch of each variant in turn and counts all of it, the start of the data workers and the wait
for the first batch included, so nothing is prepared outside of what is timed. A ratio is the median over rounds of the
round's own ratio. Every variant is a process of its own, with the same threads and the same number of data workers; one
works while the others wait. Ours prepares pictures in the workers; the released way only decodes there. CPU seconds
count workers too, so work that is merely moved shows. Freed memory is kept for all of them, as an accelerator's
allocator does.
"""

import argparse
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import isolated
import torch
from sizes import KINDS, SIZES
from timing import Usage, machine, median_ratio, others_load, table
from variants import PARTS, Settings, cached_variant, our_variant, plain_variant, released_variant

VARIANTS = {
    "released": released_variant,
    "ours": our_variant,
    "cached": cached_variant,
    "plain": plain_variant,
}
Times = dict[str, list[Usage]]


def compare(processes: dict[str, ProcessPoolExecutor], rounds: int, steps: int) -> Times:
    """What every round took, by the variant's name."""
    times: Times = {name: [] for name in processes}
    for _ in range(rounds):
        for name, process in processes.items():
            times[name].append(process.submit(isolated.epoch, steps).result())
    return times


def speed_table(times: Times, images: int) -> str:
    """Per variant the time of an image, and as ratios to the first variant's: images per second, images per CPU second
    of the training process, and of everything."""
    first, *_ = times.values()
    rows = []
    for name, own in times.items():
        wall, process, workers = (1e3 * statistics.median(column) / images for column in zip(*own, strict=True))
        ratios = [
            median_ratio([measure(usage) for usage in first], [measure(usage) for usage in own])
            for measure in (lambda usage: usage.wall, lambda usage: usage.own, lambda usage: usage.cpu)
        ]
        cells = [f"{median:.2f} ({low:.2f} to {high:.2f})" for median, low, high in ratios]
        rows.append((name, f"{1e3 / wall:.2f}", f"{process:.0f}", f"{workers:.0f}", *cells))
    headings = ("variant", "images/s", "CPU ms/image", "of workers", "images/s", "per CPU s of training", "per CPU s")
    return table(headings, rows)


def parts_table(shares: dict[str, dict[str, float]], images: int) -> str:
    """shares: seconds by part, by the variant's name."""
    rows = []
    for name, seconds in shares.items():
        whole = sum(seconds.values())
        rows.append((name, *(f"{1e3 * s / images:.0f} ({s / whole:.0%})" for s in seconds.values())))
    return table(("variant", *PARTS), rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="full sizes on a GPU, with memory, FLOPs and a profile")
    parser.add_argument("--sizes", choices=SIZES, help="default: paced, with --full full")
    parser.add_argument("--variants", nargs="+", default=["released", "ours", "cached"], choices=VARIANTS)
    parser.add_argument("--teachers", nargs="+", default=[*KINDS], choices=KINDS)
    parser.add_argument("--stage", default="pretrain", choices=["pretrain", "finetune"])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=16, help="steps of an epoch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peak_tflops", type=float, help="of the GPU in bfloat16, where its name does not say")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.full:
        from full import run_full

        run_full(args)
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sizes, dtype = SIZES[args.sizes or "paced"], getattr(torch, args.dtype)
        settings = Settings(
            sizes, args.teachers, args.stage, dtype, torch.device("cpu"), args.batch, args.workers, Path(folder)
        )
        own = [stack.enter_context(isolated.own_process()) for _ in args.variants]
        built = [
            process.submit(isolated.build, VARIANTS[name], settings, args.threads)
            for name, process in zip(args.variants, own, strict=True)
        ]
        processes = {future.result(): process for future, process in zip(built, own, strict=True)}
        times = compare(processes, args.rounds, args.steps)
        shares = {name: process.submit(isolated.shares).result() for name, process in processes.items()}
    print(
        f"{machine(settings.device)}; {args.threads} threads, {args.workers} data workers, {args.dtype}, stage "
        f"{args.stage}, batch {args.batch}, {args.rounds} rounds of {args.steps} steps; load {others_load():.1f}; "
        f"torch {torch.__version__}\n{sizes.text()}\n"
    )
    images = args.steps * args.batch
    print(speed_table(times, images))
    print(f"\nMilliseconds per image, and share of the step:\n\n{parts_table(shares, images * args.rounds)}")


if __name__ == "__main__":
    main()
