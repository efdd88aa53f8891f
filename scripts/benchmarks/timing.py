"""What the benchmarks share: the machine's name, seconds by part, and CPU seconds of this process and its workers."""

import ctypes
import os
import platform
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt


def machine(device: torch.device) -> str:
    """The device by name, as a table's heading needs it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores visible"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
        flags = next((line for line in lines if line.startswith("flags")), "").split()
        units = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
        return f"{name} ({', '.join(units)})" if units else name
    return platform.processor() or platform.machine()


def keep_memory() -> None:
    """Let freed memory be used again, as a GPU's allocator does: otherwise the kernel hands out and zeroes every large
    tensor anew, which on a CPU can cost more than computing it. Only where the C library is glibc."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def others_load() -> float:
    """Processes that wanted a core in the last minute, this one included; a number far above the threads in use says
    that somebody else was busy."""
    return os.getloadavg()[0]


class Usage(NamedTuple):
    """Seconds of a stretch of work. own: CPU time of this process, all threads. workers: of children that ended."""

    wall: float
    own: float
    workers: float

    @classmethod
    def now(cls) -> "Usage":
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return cls(time.perf_counter(), own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime)

    def since(self, start: "Usage") -> "Usage":
        return Usage(*(end - begin for end, begin in zip(self, start, strict=True)))

    @property
    def cpu(self) -> float:
        return self.own + self.workers


def median_ratio(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and largest of the rounds' own ratios first / second."""
    ratios = [own / other for own, other in zip(first, second, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


class Clock:
    """Seconds by part. On a CPU they are this process's CPU seconds, which others on the machine change little; on a
    GPU wall seconds, and `synchronize` waits for the device at every boundary."""

    def __init__(self, device: torch.device, synchronize: bool = False) -> None:
        self.synchronize = synchronize
        self.read = time.perf_counter if device.type == "cuda" else time.process_time
        self.seconds: dict[str, float] = {}
        self._started: dict[str, float] = {}

    def now(self) -> float:
        if self.synchronize:
            torch.cuda.synchronize()
        return self.read()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - start

    def watch(self, name: str, module: nn.Module) -> None:
        """Count the forward passes of `module` as `name`."""

        def before(*_: Any) -> None:
            self._started[name] = self.now()

        def after(*_: Any) -> None:
            self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - self._started[name]

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
