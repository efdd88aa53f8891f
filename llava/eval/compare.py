"""Several checkpoints and seeds in one table, with intervals and paired tests.

    python scripts/eval/compare.py baseline=run-seed0 baseline=run-seed1 move-kd=kd-seed0 move-kd=kd-seed1 \\
        --markdown table.md --figure table.png

The first checkpoint is what the others are compared with.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llava.errors import readable_errors
from llava.eval.intervals import (
    Array,
    Interval,
    McNemar,
    bootstrap_interval,
    holm,
    mcnemar,
    paired_t_test,
    permutation_test,
    t_interval,
    welch_t_test,
)
from llava.eval.runs import Reading, Run, read_labels, read_run


@dataclass(frozen=True)
class Column:
    """One benchmark. values: {checkpoint: (S, Q)}, seeds by questions. clusters: Q names, or None."""

    benchmark: str
    seeds: dict[str, tuple[int, ...]]
    values: dict[str, Array]
    clusters: list[str] | None

    @property
    def questions(self) -> int:
        return next(iter(self.values.values())).shape[1]


class Cell(NamedTuple):
    """Fractions of 1. over_seeds: both ends nan for a single seed."""

    mean: float
    over_questions: Interval
    over_seeds: Interval


class Difference(NamedTuple):
    """Of `checkpoint` minus the first one. over_seeds: p, nan for single seeds. discordant: None for soft scores."""

    benchmark: str
    checkpoint: str
    mean: float
    over_questions: Interval
    p_questions: float
    discordant: McNemar | None
    p_seeds: float


def build_columns(runs: Sequence[Run], common: bool = False) -> list[Column]:
    """Benchmarks that every run has. Raises ValueError if runs answer different questions, unless `common`."""
    names = list(dict.fromkeys(run.name for run in runs))
    for name in names:
        seeds = [run.seed for run in runs if run.name == name]
        if len(set(seeds)) != len(seeds):
            paths = ", ".join(str(run.path) for run in runs if run.name == name)
            raise ValueError(f"{name} has a seed twice ({paths}); end the names of files or folders in -seed0, -seed1")
    shared = [name for name in runs[0].benchmarks if all(name in run.benchmarks for run in runs)]
    if not shared:
        held = "; ".join(f"{run.path}: {', '.join(run.benchmarks)}" for run in runs)
        raise ValueError(f"no benchmark is in every run ({held})")
    return [_build_column(benchmark, names, runs, common) for benchmark in shared]


def _build_column(benchmark: str, names: Sequence[str], runs: Sequence[Run], common: bool) -> Column:
    asked = [set(run.benchmarks[benchmark]) for run in runs]
    kept = set.intersection(*asked)
    for run, questions in zip(runs, asked, strict=True):
        if questions != asked[0] and not common:
            odd = sorted(questions ^ asked[0])
            raise ValueError(
                f"{benchmark}: {runs[0].path} and {run.path} differ in {len(odd)} questions, the first is {odd[0]}; "
                "--common compares those that all runs answer"
            )
    if not kept:
        raise ValueError(f"{benchmark}: no question is answered by all runs")
    order = [identity for identity in runs[0].benchmarks[benchmark] if identity in kept]
    first = runs[0].benchmarks[benchmark]
    clusters = [first[identity].cluster for identity in order]
    values, seeds = {}, {}
    for name in names:
        own = sorted((run for run in runs if run.name == name), key=lambda run: run.seed)
        seeds[name] = tuple(run.seed for run in own)
        values[name] = np.array([[run.benchmarks[benchmark][identity].value for identity in order] for run in own])
    known = [cluster for cluster in clusters if cluster is not None]
    return Column(benchmark, seeds, values, known if len(known) == len(order) else None)


def cell(column: Column, checkpoint: str) -> Cell:
    values = column.values[checkpoint]
    by_question = values.mean(axis=0)
    return Cell(
        float(by_question.mean()),
        bootstrap_interval(by_question, column.clusters),
        t_interval(values.mean(axis=1)),
    )


def difference(column: Column, checkpoint: str, baseline: str) -> Difference:
    ours, theirs = column.values[checkpoint], column.values[baseline]
    by_question = ours.mean(axis=0) - theirs.mean(axis=0)
    is_hard = len(ours) == len(theirs) == 1 and bool(np.isin(np.concatenate([ours, theirs]), (0.0, 1.0)).all())
    if column.seeds[checkpoint] == column.seeds[baseline]:
        p_seeds = paired_t_test(ours.mean(axis=1) - theirs.mean(axis=1))
    else:
        p_seeds = welch_t_test(ours.mean(axis=1), theirs.mean(axis=1))
    return Difference(
        column.benchmark,
        checkpoint,
        float(by_question.mean()),
        bootstrap_interval(by_question, column.clusters),
        permutation_test(by_question, column.clusters),
        mcnemar(ours[0], theirs[0]) if is_hard else None,
        p_seeds,
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _between(interval: Interval) -> str:
    return "–" if math.isnan(interval.low) else f"[{_percent(interval.low)}, {_percent(interval.high)}]"


def _probability(p: float) -> str:
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [headers, ["---"] * len(headers), *rows]]
    return "\n".join(lines)


def scores_table(columns: Sequence[Column]) -> str:
    names = list(columns[0].values)
    headers = ["checkpoint", "seeds", *(column.benchmark for column in columns)]
    rows = []
    for name in names:
        cells = [cell(column, name) for column in columns]
        seeds = len(columns[0].seeds[name])
        texts = [
            f"{_percent(one.mean)} {_between(one.over_questions)}"
            + ("" if math.isnan(one.over_seeds.low) else f"; seeds {_between(one.over_seeds)}")
            for one in cells
        ]
        row = [name, str(seeds), *texts]
        if len(columns) > 1:
            row.append(_percent(float(np.mean([one.mean for one in cells]))))
        rows.append(row)
    return table(headers + (["mean"] if len(columns) > 1 else []), rows)


def differences_table(differences: Sequence[Difference], baseline: str) -> str:
    over_questions = holm([row.p_questions for row in differences])
    over_seeds = holm([row.p_seeds for row in differences])
    rows = []
    for row, held, seeded in zip(differences, over_questions, over_seeds, strict=True):
        found = row.discordant
        rows.append(
            [
                row.benchmark,
                row.checkpoint,
                f"{100 * row.mean:+.1f} {_between(row.over_questions)}",
                f"{_probability(row.p_questions)} ({_probability(held)})",
                f"{found.first_only} : {found.second_only}, {_probability(found.p)}" if found else "–",
                "–" if math.isnan(row.p_seeds) else f"{_probability(row.p_seeds)} ({_probability(seeded)})",
            ]
        )
    headers = ("benchmark", "checkpoint", f"minus {baseline}", "p questions (Holm)", "McNemar", "p seeds (Holm)")
    return table(headers, rows)


def notes(columns: Sequence[Column]) -> str:
    sizes = []
    for column in columns:
        groups = "" if column.clusters is None else f" about {len(set(column.clusters))} pictures"
        sizes.append(f"{column.benchmark}: {column.questions} questions{groups}")
    return (
        "Percent. Brackets: 95 % intervals, over questions by bootstrap (10,000 resamples of pictures where they are "
        "known, else of questions; seeds averaged), over seeds by Student's t. p questions: sign flips of the same "
        "units, paired. McNemar: questions that only this checkpoint : only the other gets right, exact p, for single "
        "seeds with right-or-wrong scores; it takes questions to be independent. p seeds: paired t test where both "
        "have the same seeds, else Welch's. Holm: adjusted for the rows of this table. " + "; ".join(sizes) + "."
    )


def report(columns: Sequence[Column]) -> str:
    """Markdown: scores, differences from the first checkpoint if there are others, and how both were found."""
    baseline, *others = columns[0].values
    parts = [scores_table(columns)]
    if others:
        found = [difference(column, name, baseline) for column in columns for name in others]
        parts.append(differences_table(found, baseline))
    return "\n\n".join([*parts, notes(columns)]) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="[NAME=]PATH", help="a file of scores, or a folder of them")
    parser.add_argument("--labels", default=None, help="JSONL {question_id, answer}, to score plain answer files")
    parser.add_argument(
        "--metric", action="append", default=[], help="which of those in one of lmms-eval's logs; may be repeated"
    )
    parser.add_argument("--common", action="store_true", help="compare only questions that all runs answer")
    parser.add_argument("--markdown", default=None, help="write the tables there")
    parser.add_argument("--figure", default=None, help="draw them there, .png or .svg")
    args = parser.parse_args(argv)
    reading = Reading(tuple(args.metric), read_labels(args.labels) if args.labels else None)
    columns = build_columns([read_run(argument, reading) for argument in args.runs], args.common)
    text = report(columns)
    print(text, end="")
    if args.markdown:
        Path(args.markdown).write_text(text, encoding="utf-8")
    if args.figure:
        from llava.eval.compare_figure import draw

        draw(columns, args.figure)


if __name__ == "__main__":
    with readable_errors():
        main()
