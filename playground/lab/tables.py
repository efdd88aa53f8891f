"""Rows of the lab as Markdown tables: scores with intervals over seeds, differences paired by seed, the paper's ladder.

Everything is in points (percent of right answers) and over the rows of one world. Knows no arm by name.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median, stdev
from typing import NamedTuple, Protocol

from llava.eval.compare import table
from llava.eval.intervals import Interval, holm, paired_t_test, ratio_interval, t_interval
from playground.lab.results import ALL, VISUAL, Row, differences, points
from playground.questions import KINDS, VISUAL_KINDS

NOTHING = "–"
ONE_SEED = "one seed"
SMALLEST_STEP = 0.2  # points; a step that is surely smaller than this is refuted


class Entry(Protocol):
    """What a table says of an arm: its title, and the arm that it is compared with."""

    @property
    def title(self) -> str: ...

    @property
    def against(self) -> str | None: ...


Arms = Mapping[str, Entry]


class Comparison(NamedTuple):
    """Points that one arm is above another. values: by seed of both. interval and p are nan for a single one."""

    values: Mapping[int, float]
    mean: float
    interval: Interval
    p: float

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.values)


def compare(rows: Sequence[Row], arm: str, against: str, split: str, measure: str = VISUAL) -> Comparison | None:
    """Paired by seed; None if the arms have no seed in common."""
    found = differences(rows, arm, against, measure, split)
    if not found:
        return None
    values = list(found.values())
    return Comparison(found, fmean(values), t_interval(values), paired_t_test(values))


# -- the tables


def scores_table(
    rows: Sequence[Row], names: Sequence[str], arms: Arms, split: str = "heldout", reference: str | None = None
) -> str:
    """Each arm's scores and how far it is above the arm it is compared with, or all above `reference`; p also after
    Holm over the comparisons of this table."""
    run = _with_rows(rows, names)
    compared = {name: reference or arms[name].against for name in run} | ({reference: None} if reference in run else {})
    found = [None if (other := compared[name]) is None else compare(rows, name, other, split) for name in run]
    held = holm([math.nan if one is None else one.p for one in found])
    body = []
    for name, one, adjusted in zip(run, found, held, strict=True):
        visual = list(points(rows, name, VISUAL, split).values())
        kinds = [f"{fmean(points(rows, name, kind, split).values()):.1f}" for kind in (*VISUAL_KINDS, ALL)]
        against = compared[name]
        body.append(
            [
                arms[name].title,
                str(len(visual)),
                _mean_between(fmean(visual), t_interval(visual)),
                *kinds,
                NOTHING if against is None else arms[against].title,
                *_comparison_cells(one, adjusted, against is not None),
                f"{core_seconds(rows, name):.0f}",
            ]
        )
    headers = ("arm", "seeds", VISUAL, *VISUAL_KINDS, ALL, "against", "difference", "pairs", "p", "p (Holm)", "core s")
    return _with_missing(table(headers, body), names, run, arms)


def kinds_table(
    rows: Sequence[Row], names: Sequence[str], arms: Arms, priors: Mapping[str, float], split: str = "heldout"
) -> str:
    """Mean and standard deviation over seeds by kind of question. priors: shares that the best answer without
    looking gets right, by kind."""
    run = _with_rows(rows, names)
    body = [["without looking", NOTHING, *(f"{100 * priors[kind]:.1f}" for kind in KINDS)]]
    for name in run:
        values = [list(points(rows, name, kind, split).values()) for kind in KINDS]
        body.append([arms[name].title, str(len(values[0])), *(_mean_deviation(one) for one in values)])
    return _with_missing(table(("arm", "seeds", *KINDS), body), names, run, arms)


def recovery_table(
    rows: Sequence[Row], names: Sequence[str], arms: Arms, baseline: str, ceiling: str, split: str = "heldout"
) -> str:
    """What share of the way from the baseline to the ceiling each arm goes, in percent."""
    measures = (*VISUAL_KINDS, VISUAL)
    gaps = [compare(rows, ceiling, baseline, split, measure) for measure in measures]
    body = [[f"{arms[ceiling].title} minus {arms[baseline].title}, points", *(_signed_between(gap) for gap in gaps)]]
    run = [name for name in _with_rows(rows, names) if name not in (baseline, ceiling)]
    for name in run:
        body.append([arms[name].title, *(_recovered(rows, name, baseline, ceiling, one, split) for one in measures)])
    return _with_missing(table(("arm", *measures), body), names, [*run, baseline, ceiling], arms)


def ladder_table(
    rows: Sequence[Row], rungs: Sequence[str], arms: Arms, paper_steps: Mapping[str, float], split: str = "heldout"
) -> str:
    """Each rung against the one before, beside the paper's own step. paper_steps: points by rung; a rung without one
    is expected to help."""
    run = _with_rows(rows, rungs)
    steps = {name: compare(rows, name, below, split) for below, name in pairwise(rungs) if name in run}
    held = holm([math.nan if step is None else step.p for step in steps.values()])
    adjusted = dict(zip(steps, held, strict=True))
    body = []
    for name in run:
        visual = list(points(rows, name, VISUAL, split).values())
        scores = [arms[name].title, str(len(visual)), _mean_between(fmean(visual), t_interval(visual))]
        if name not in steps:
            body.append([*scores, *[NOTHING] * 6])
            continue
        step, paper = steps[name], paper_steps.get(name)
        cells = _comparison_cells(step, adjusted[name], True)
        published = NOTHING if paper is None else f"{paper:+.1f}"
        body.append([*scores, *cells, published, verdict(step, paper or 0.0, len(steps))])
    headers = ("rung", "seeds", VISUAL, "step", "pairs", "p", "p (Holm)", "paper's step", "the claim, here")
    return _with_missing(table(headers, body), rungs, run, arms)


def verdict(step: Comparison | None, paper: float, comparisons: int) -> str:
    """Of a claimed step, which points up unless the paper's own points down, by an interval that holds for all
    `comparisons` at once (Bonferroni, 95 %). Confirmed: it lies on the claimed side of 0. Refuted: on the other side,
    or wholly short of SMALLEST_STEP on the claimed one."""
    if step is None or len(step.seeds) < 2:
        return "undecided"
    low, high = t_interval(list(step.values.values()), confidence=1 - 0.05 / comparisons)
    low, high = (low, high) if paper >= 0 else (-high, -low)
    if low > 0:
        return "confirmed"
    return "refuted" if high < SMALLEST_STEP else "undecided"


def core_seconds(rows: Sequence[Row], arm: str) -> float:
    """Processor time of both stages of training, without the process that reads data: median over seeds."""
    return median(row.core_seconds["stage1"] + row.core_seconds["stage2"] for row in rows if row.arm == arm)


# -- cells


def _comparison_cells(found: Comparison | None, adjusted: float, is_compared: bool) -> tuple[str, str, str, str]:
    """Difference, pairs, p, p after Holm."""
    if found is None:
        return "no common seed" if is_compared else NOTHING, NOTHING, NOTHING, NOTHING
    return _signed_between(found), str(len(found.seeds)), _probability(found.p), _probability(adjusted)


def _recovered(rows: Sequence[Row], arm: str, baseline: str, ceiling: str, measure: str, split: str) -> str:
    """Only where the ceiling is above the baseline beyond doubt: a share of nothing is any number."""
    gained, gaps = (differences(rows, name, baseline, measure, split) for name in (arm, ceiling))
    seeds = [seed for seed in gained if seed in gaps]
    if not seeds:
        return "no common seed"
    parts, wholes = [gained[seed] for seed in seeds], [gaps[seed] for seed in seeds]
    surely = sum(wholes) if len(seeds) == 1 else t_interval(wholes).low
    if surely <= 0:
        return "no gap"
    share = 100 * sum(parts) / sum(wholes)
    if len(seeds) == 1:
        return f"{share:z.0f}"
    low, high = ratio_interval(parts, wholes)
    return f"{share:z.0f} [{100 * low:z.0f}, {100 * high:z.0f}]"


def _mean_between(mean: float, interval: Interval) -> str:
    return f"{mean:.1f}{_between(interval, 'z.1f')}"


def _signed_between(found: Comparison | None) -> str:
    return NOTHING if found is None else f"{found.mean:+z.1f}{_between(found.interval, '+z.1f')}"


def _between(interval: Interval, form: str) -> str:
    return "" if math.isnan(interval.low) else f" [{interval.low:{form}}, {interval.high:{form}}]"


def _mean_deviation(values: Sequence[float]) -> str:
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _probability(p: float) -> str:
    return ONE_SEED if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _with_rows(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    known = {row.arm for row in rows}
    return [name for name in names if name in known]


def _with_missing(text: str, names: Sequence[str], run: Sequence[str], arms: Arms) -> str:
    missing = [arms[name].title for name in names if name not in run]
    return f"{text}\n\nNot run: {', '.join(missing)}." if missing else text
