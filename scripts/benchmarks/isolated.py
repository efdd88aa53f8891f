"""A variant in a process of its own, so that none finds its memory or caches as another left them."""

import multiprocessing
from collections.abc import Callable
from functools import cached_property
from multiprocessing.connection import Connection
from typing import Any

import torch
from timing import Usage, keep_memory
from variants import Settings, Variant

Build = Callable[[Settings], Variant]


class Isolated:
    """Waits without work between its epochs. Raises RuntimeError once its process has ended of itself."""

    def __init__(self, build: Build, settings: Settings, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(build, settings, threads, there))
        self.process.start()
        there.close()

    @cached_property
    def name(self) -> str:
        """Waits until the variant is built and warm."""
        return self._ask()

    def epoch(self, steps: int) -> Usage:
        return self._ask(steps)

    def __enter__(self) -> "Isolated":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()  # it has ended already, or an error ended the comparison
        self.process.join()

    def finish(self) -> dict[str, float]:
        """Ends the process; seconds of all its epochs by part."""
        return self._ask(None)

    def _ask(self, *question: int | None) -> Any:
        try:
            for item in question:
                self.pipe.send(item)
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError("a variant's process ended early; its own message is above") from None


def _serve(build: Build, settings: Settings, threads: int, pipe: Connection) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of data workers, as in any training process
    keep_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    variant = build(settings)
    variant.epoch(1)
    variant.clock.seconds.clear()
    pipe.send(variant.name)
    for steps in iter(pipe.recv, None):
        pipe.send(variant.epoch(steps))
    pipe.send(variant.shares())
