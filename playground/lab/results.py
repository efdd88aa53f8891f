"""Finished runs of the lab, one JSON line each, and what can be counted in them. Knows no arm by name.

Shares are from 0 to 1; points are percent.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from playground.questions import KINDS, VISUAL_KINDS

VISUAL, ALL = "visual", "all"  # measures beside the kinds of question


@dataclass(frozen=True)
class Row:
    """One run, trained and evaluated.

    world: fingerprint of the scenes and of the pieces that all arms share. flags: command line by stage.
    core_seconds: by stage1, stage2, evaluation. right: split ("validation", "heldout") -> kind of question ->
    a 1 or 0 per question, in the order of asking. curves: (step, value) by the name in the trainer's log of
    stage 2; those of stage 1 begin with `stage1/`.
    """

    arm: str
    seed: int
    world: str
    flags: Mapping[str, list[str]]
    versions: Mapping[str, str]
    core_seconds: Mapping[str, float]
    right: Mapping[str, Mapping[str, str]]
    curves: Mapping[str, list[tuple[int, float]]]


def read_rows(path: Path) -> list[Row]:
    """In the order of the file; of the same arm, seed and world the last row counts. No file: no rows.

    Raises ValueError for a line that is not a whole row, which a crash while it was written leaves.
    """
    found: dict[tuple[str, int, str], Row] = {}
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        try:
            row = parse_row(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            raise ValueError(
                f"{path}, line {number} is not a whole row ({problem}); delete the line and run that arm and seed again"
            ) from problem
        found.pop((row.arm, row.seed, row.world), None)
        found[row.arm, row.seed, row.world] = row
    return list(found.values())


def parse_row(fields: dict[str, Any]) -> Row:
    fields["curves"] = {
        name: [(int(step), float(value)) for step, value in curve] for name, curve in fields["curves"].items()
    }
    return Row(**fields)


def append_row(path: Path, row: Row) -> None:
    """In one write and on the disk when this returns; processes may append to one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(asdict(row)) + "\n").encode()
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            line = b"\n" + line  # a torn line stays a line of its own, which read_rows names
        if os.write(file, line) != len(line):
            raise OSError(f"{path}: the row of {row.arm}, seed {row.seed} was not written whole; is the disk full?")
        os.fsync(file)
    finally:
        os.close(file)


def by_world(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of different worlds answer different questions; they are never compared."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.world, []).append(row)
    return found


def accuracy(row: Row, split: str, kind: str) -> float:
    """Share of right answers to one kind of question. Raises ValueError if none was asked."""
    answers = row.right.get(split, {}).get(kind, "")
    if not answers:
        asked = {name: sorted(kinds) for name, kinds in row.right.items()}
        raise ValueError(f"{row.arm}, seed {row.seed} answered no {kind!r} question of {split!r}, only {asked}")
    return answers.count("1") / len(answers)


def mean_accuracy(row: Row, split: str, kinds: Sequence[str]) -> float:
    return sum(accuracy(row, split, kind) for kind in kinds) / len(kinds)


def headline(row: Row, split: str) -> float:
    """What arms are compared by: the mean over VISUAL_KINDS."""
    return mean_accuracy(row, split, VISUAL_KINDS)


def points(rows: Sequence[Row], arm: str, measure: str, split: str) -> dict[int, float]:
    """{seed: percent}, by seed, of a kind of question, VISUAL or ALL. Raises ValueError for rows of several worlds."""
    if len(worlds := by_world(rows)) > 1:
        raise ValueError(f"rows of {len(worlds)} worlds ({', '.join(worlds)}) cannot be compared; use by_world first")
    kinds = {VISUAL: VISUAL_KINDS, ALL: KINDS}.get(measure, (measure,))
    found = {row.seed: row for row in rows if row.arm == arm}
    return {seed: 100 * mean_accuracy(row, split, kinds) for seed, row in sorted(found.items())}


def differences(rows: Sequence[Row], arm: str, against: str, measure: str, split: str) -> dict[int, float]:
    """{seed: points} that `arm` is above `against`, for the seeds that both have."""
    ours, theirs = (points(rows, name, measure, split) for name in (arm, against))
    return {seed: value - theirs[seed] for seed, value in ours.items() if seed in theirs}
