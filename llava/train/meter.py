"""Named scalars of the steps since the last log, kept on the device and brought to the host only when logged."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
import torch.distributed
from torch import Tensor

from llava.errors import NonFiniteLoss
from llava.train.environment import gather_objects
from llava.train.stopwatch import Stopwatch


class StepMeter:
    """Sums terms and metrics, counts images, and remembers the first micro-batch whose loss is not finite.

    Nothing here waits for the device until `drain` or `check` is called. Every process must call those together.
    teachers: the watch to run while teachers do.
    """

    def __init__(self) -> None:
        self.metrics: set[str] = set()  # names that are not terms of the loss
        self.teachers = Stopwatch()
        self._restart_clock()
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, Tensor] = {}  # (2,): of the values, and how many there were
        self.steps = 0
        self.images = 0
        self.samples: list[Sequence[str]] = []
        self.first_bad: dict[tuple[str, ...], Tensor] = {}  # by the names of a step: of each the first bad micro-batch

    def _restart_clock(self) -> None:
        self.started = time.monotonic()
        self.teachers.reset()

    def pause(self) -> None:
        """Leave the time since the last log out of the throughput: something else than training took it."""
        self._restart_clock()
        self.images = 0

    @torch.no_grad()
    def add(self, outputs: Mapping[str, Any], samples: Sequence[str], images: int) -> None:
        """outputs: what the distiller returned; a metric that is NaN had nothing to measure and does not count.
        samples: ids of the micro-batch, for the message if it is bad."""
        self.metrics |= outputs["metrics"].keys()
        for name, value in {**outputs["terms"], **outputs["metrics"]}.items():
            add_counted(self.sums, name, value.nan_to_num(0.0), 1.0 - value.isnan().float())
        self._watch({"loss": outputs["loss"], **outputs["terms"]})
        self.samples.append(samples)
        self.steps += 1
        self.images += images

    def _watch(self, terms: Mapping[str, Tensor]) -> None:
        losses = torch.stack([value.detach().float() for value in terms.values()])
        never = torch.full_like(losses, math.inf)
        now = torch.where(torch.isfinite(losses), never, torch.full_like(losses, float(self.steps)))
        names = tuple(terms)
        self.first_bad[names] = torch.minimum(self.first_bad[names], now) if names in self.first_bad else now

    def check(self) -> None:
        """Raises NonFiniteLoss on every process if a loss since the last log was not finite on any of them."""
        if self.first_bad and _sum_over_processes(self._bad_count()[None])[0]:
            self._fail()

    def _bad_count(self) -> Tensor:
        return torch.isfinite(torch.cat([*self.first_bad.values()])).sum().float()

    def _fail(self) -> NoReturn:
        bad: dict[str, int] = {}
        for names, steps in self.first_bad.items():
            for name, step in zip(names, steps.tolist(), strict=True):
                if math.isfinite(step):
                    bad[name] = min(int(step), bad.get(name, self.steps))
        messages = gather_objects(self._describe(bad) if bad else None)
        raise NonFiniteLoss("; ".join(text for text in messages if text))

    def _describe(self, bad: Mapping[str, int]) -> str:
        step = min(bad.values())
        terms = sorted(name for name, value in bad.items() if value == step and (name != "loss" or len(bad) == 1))
        samples = ", ".join(str(sample) for sample in self.samples[step])
        back = self.steps - 1 - step
        return f"{' and '.join(terms)} not finite {back} micro-batches before the last, in samples {samples}"

    def drain(self) -> dict[str, float]:
        """Means since the last call over steps and processes, with images per second over all processes, and the
        share of this process's time that its teachers took. Metrics that nobody could measure are left out.

        Raises NonFiniteLoss as `check` does.
        """
        if not self.first_bad:
            return {}
        bad_count = self._bad_count()
        totals = sum_by_name({**self.sums, "": torch.stack([torch.full_like(bad_count, self.images), bad_count])})
        images, bad = totals.pop("")  # which no term is called
        if bad:
            self._fail()
        elapsed = max(time.monotonic() - self.started, 1e-9)  # now that the device has come to rest
        logs = {name: total / count for name, (total, count) in totals.items() if count}
        logs["images_per_second"] = round(images / elapsed, 3)
        if (taught := self.teachers.drain()) > 0:
            logs["teacher_share"] = round(taught / elapsed, 4)
        self._reset()
        self._restart_clock()
        return logs


def add_counted(sums: dict[str, Tensor], name: str, value: Tensor, count: Tensor) -> None:
    """Add a scalar and how often it counts to the pair of sums (2,) that has its name."""
    counted = torch.stack([value.detach().float(), count])
    sums[name] = sums[name] + counted if name in sums else counted


def sum_by_name(sums: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Pairs (2,) summed over processes, each of which may lack names that others have. Waits for the device; every
    process must call it, each with at least one name or all with none."""
    names = sorted(set().union(*gather_objects(list(sums))))
    if not names:
        return {}
    none = torch.zeros_like(next(iter(sums.values())))
    totals = _sum_over_processes(torch.cat([sums.get(name, none) for name in names]))
    return dict(zip(names, zip(totals[::2], totals[1::2], strict=True), strict=True))


def _sum_over_processes(values: Tensor) -> list[float]:
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values.tolist()
