"""A variant in a process of its own, so that none finds its memory or caches as another left them: a pool of one, whose
process calls `build` first and `epoch` and `shares` afterwards."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from timing import Usage, keep_memory
from variants import Settings, Variant

_variants: list[Variant] = []  # the one of this process


def own_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))


def build(make: Callable[[Settings], Variant], settings: Settings, threads: int) -> str:
    """Its name, once it is built and warm."""
    multiprocessing.set_start_method("fork", force=True)  # of data workers, as in any training process
    keep_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    variant = make(settings)
    variant.epoch(1)
    variant.clock.seconds.clear()
    _variants.append(variant)
    return variant.name


def epoch(steps: int) -> Usage:
    return _variants[0].epoch(steps)


def shares() -> dict[str, float]:
    """Seconds of all epochs by part."""
    return _variants[0].shares()
