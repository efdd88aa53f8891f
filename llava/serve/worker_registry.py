"""Which workers there are, what they serve and how busy they are. Pure state with a clock; no network."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from llava.constants import CONTROLLER_HEART_BEAT_EXPIRATION

Dispatch = Literal["lottery", "shortest_queue"]
DISPATCH_METHODS = get_args(Dispatch)


@dataclass(frozen=True)
class WorkerStatus:
    """What a worker says of itself."""

    model_names: tuple[str, ...]
    speed: float
    queue_length: int

    @classmethod
    def of(cls, message: Any) -> "WorkerStatus":
        """From JSON. Raises ValueError for anything but a worker's status."""
        try:
            names, speed, queue = message["model_names"], message["speed"], message["queue_length"]
            if isinstance(names, list) and all(isinstance(name, str) for name in names) and float(speed) > 0:
                return cls(tuple(names), float(speed), int(queue))
        except (KeyError, TypeError, ValueError):
            pass
        raise ValueError(f"{str(message)[:200]} is no worker's status: model_names, a speed above 0 and queue_length")

    def as_dict(self) -> dict[str, Any]:
        return {"model_names": list(self.model_names), "speed": self.speed, "queue_length": self.queue_length}


@dataclass(frozen=True)
class Worker:
    """has_heart_beat: whether it must be heard of regularly. heard: when it was, last."""

    status: WorkerStatus
    has_heart_beat: bool
    heard: float


class Registry:
    """Workers by address. A worker that ought to be heard of and is not, is gone. All methods may be called from
    any thread."""

    def __init__(
        self,
        dispatch: Dispatch = "shortest_queue",
        clock: Callable[[], float] = time.monotonic,
        expiration: float = CONTROLLER_HEART_BEAT_EXPIRATION,
    ) -> None:
        if dispatch not in DISPATCH_METHODS:
            raise ValueError(f"dispatch method {dispatch!r} is not known; use {' or '.join(DISPATCH_METHODS)}")
        self.dispatch = dispatch
        self.clock = clock
        self.expiration = expiration
        self._workers: dict[str, Worker] = {}
        self._lock = threading.Lock()

    def register(self, address: str, status: WorkerStatus, has_heart_beat: bool) -> bool:
        """Whether the worker is new."""
        with self._lock:
            is_new = address not in self._workers
            self._workers[address] = Worker(status, has_heart_beat, self.clock())
            return is_new

    def hear(self, address: str, queue_length: int) -> bool:
        """A heartbeat. False if the worker is not known and must register."""
        with self._lock:
            worker = self._workers.get(address)
            if worker is None:
                return False
            status = replace(worker.status, queue_length=queue_length)
            self._workers[address] = replace(worker, status=status, heard=self.clock())
            return True

    def drop(self, address: str) -> None:
        with self._lock:
            self._workers.pop(address, None)

    def expire(self) -> list[str]:
        """Forgets the workers that were not heard of in time, and names them."""
        with self._lock:
            limit = self.clock() - self.expiration
            gone = [name for name, worker in self._workers.items() if worker.has_heart_beat and worker.heard < limit]
            for name in gone:
                del self._workers[name]
            return gone

    def workers(self) -> dict[str, Worker]:
        with self._lock:
            return dict(self._workers)

    def models(self) -> list[str]:
        """Each model once, in the order in which they were registered."""
        return list(dict.fromkeys(name for worker in self.workers().values() for name in worker.status.model_names))

    def choose(self, model: str, without: Sequence[str] = ()) -> str | None:
        """The address of a worker for `model`, and one more request counted there; None if there is none."""
        self.expire()
        with self._lock:
            suitable = {
                name: worker
                for name, worker in self._workers.items()
                if model in worker.status.model_names and name not in without
            }
            if not suitable:
                return None
            if self.dispatch == "lottery":
                speeds = [worker.status.speed for worker in suitable.values()]
                return random.choices(list(suitable), speeds)[0]
            chosen = min(suitable, key=lambda name: suitable[name].status.queue_length / suitable[name].status.speed)
            worker = suitable[chosen]
            status = replace(worker.status, queue_length=worker.status.queue_length + 1)
            self._workers[chosen] = replace(worker, status=status)
            return chosen

    def aggregate(self) -> WorkerStatus:
        """All workers as if they were one."""
        statuses = [worker.status for worker in self.workers().values()]
        return WorkerStatus(
            tuple(self.models()),
            sum(status.speed for status in statuses),
            sum(status.queue_length for status in statuses),
        )
