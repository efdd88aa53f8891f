"""Made-up rows of the lab, whose scores are known."""

from collections.abc import Mapping
from dataclasses import dataclass

from playground.lab.results import Row
from playground.questions import KINDS, VISUAL_KINDS

ASKED = 1000  # questions of a kind: a tenth of a point each
PRIORS = dict.fromkeys(KINDS, 0.25)


@dataclass(frozen=True)
class Arm:
    title: str
    against: str | None = None


def answers(percent: float) -> str:
    right = round(percent * ASKED / 100)
    return "1" * right + "0" * (ASKED - right)


def row(
    arm: str,
    seed: int,
    visual: float = 50.0,
    world: str = "w0",
    curves: Mapping[str, list[tuple[int, float]]] | None = None,
    **kinds: float,
) -> Row:
    """Every visual kind scores `visual` percent and the others 10, but for those given by name."""
    percents = {kind: visual if kind in VISUAL_KINDS else 10.0 for kind in KINDS} | kinds
    right = {kind: answers(percent) for kind, percent in percents.items()}
    seconds = {"stage1": 40.0, "stage2": 100.0 + seed, "evaluation": 7.0}
    return Row(
        arm, seed, world, {"stage2": ["--seed", str(seed)]}, {"torch": "2.9"}, seconds, {"heldout": right}, curves or {}
    )


def cells(text: str) -> dict[str, dict[str, str]]:
    """A Markdown table's rows by their first cell, each by column title."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    titles, _, *body = lines
    return {line[0]: dict(zip(titles, line, strict=True)) for line in body}
