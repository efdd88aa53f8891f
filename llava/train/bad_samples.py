"""Counting samples that cannot be used: by reason, with their names, and with an end to it.

Each process counts what it meets; the log file, appended to line by line, brings all workers and ranks together.
"""

import json
import os
from collections import Counter

from transformers.utils import logging

from llava.train.records import BadSample, DataError

logger = logging.get_logger(__name__)

# The limit is a share of the samples seen so far, but of at least this many: the first bad sample is not 100 %.
# In a data set smaller than that, half of it may be bad.
SMALLEST_BASE = 1000
SHOWN = 5  # messages per reason and process


class BadSamples:
    """limit: share of bad samples above which `record` raises. total: samples in the data set."""

    def __init__(self, limit: float, total: int, path: str | None = None) -> None:
        self.limit = limit
        self.total = total
        self.path = path
        self.seen = 0
        self.bad: set[int] = set()
        self.noted: set[int] = set()
        self.reasons: Counter[str] = Counter()

    def record(self, index: int, error: BadSample) -> None:
        """Counts a sample once. Raises DataError when too many are bad."""
        if index in self.bad:
            return
        self.bad.add(index)
        self._write(error.reason, str(error), "skipped")
        count = len(self.bad)
        if too_many(count, self.seen, self.total, self.limit):
            raise DataError(
                f"{count} of the first {max(self.seen, count)} samples read here are bad, more than bad_sample_limit "
                f"{self.limit:g} allows: {self.summary()}. The last one: {error}. "
                "List all of them with: python -m llava.train.data_check"
            )

    def note(self, index: int, reason: str, message: str) -> None:
        """Counts a sample that is used although something of it is lost."""
        if index not in self.noted:
            self.noted.add(index)
            self._write(reason, message, "used")

    def summary(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())

    def _write(self, reason: str, message: str, outcome: str) -> None:
        self.reasons[reason] += 1
        if self.reasons[reason] <= SHOWN:
            logger.warning(f"sample {outcome} ({reason}): {message}")
        if self.path is None:
            return
        line = json.dumps({"reason": reason, "outcome": outcome, "message": message})
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        # One write to a file opened for appending does not mix with those of other processes.
        with open(self.path, "ab", buffering=0) as file:
            file.write(line.encode() + b"\n")


def too_many(bad: int, seen: int, total: int, limit: float) -> bool:
    """Whether `bad` of `seen` samples, out of a data set of `total`, are more than the share `limit` allows."""
    return bad > limit * max(seen, SMALLEST_BASE) or bad > max(limit, 0.5) * total
