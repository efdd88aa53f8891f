"""How long one part of the step takes, found without waiting for the device while the step runs."""

import time
from types import TracebackType

import torch


class Stopwatch:
    """A context manager that adds up the time spent inside. On a GPU it leaves two events in the stream, whose
    distance is read in `drain`; elsewhere it reads the clock."""

    def __init__(self) -> None:
        self.started = 0.0
        self.reset()

    def reset(self) -> None:
        self.seconds = 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if torch.cuda.is_available():
            self.events.append((_event(), _event()))
            self.events[-1][0].record()
        else:
            self.started = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if torch.cuda.is_available():
            self.events[-1][1].record()
        else:
            self.seconds += time.perf_counter() - self.started

    def drain(self) -> float:
        """Seconds since the last call. The device must have come to rest, or this waits for it."""
        if self.events:
            self.events[-1][1].synchronize()
        milliseconds = sum(start.elapsed_time(end) for start, end in self.events)
        seconds = self.seconds + milliseconds / 1000
        self.reset()
        return seconds


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)
