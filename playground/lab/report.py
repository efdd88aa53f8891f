"""Everything the lab says about the finished runs of one world: a page of tables, and the plots.

    python -m playground.lab.report DIR [--split validation]

reads DIR/results.jsonl and DIR/priors.json, and writes DIR/report.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.eval.questions import read_jsonl
from playground.evaluate import Prior
from playground.lab import plots
from playground.lab.arms import ARMS, LADDER_RUNGS, LADDER_STEPS, REFERENCES, TABLES
from playground.lab.results import Row, read_rows
from playground.lab.tables import SMALLEST_STEP, Arms, kinds_table, ladder_table, recovery_table, scores_table
from playground.llava_data import QUESTION_SPLITS

CODE = ("source", "pieces")  # digests among the versions of a row
RESULTS, PRIORS = "results.jsonl", "priors.json"
DRAWN = ("baseline-early", "experts", "truth", "release", "paper-early", "ours", "ceiling")


@dataclass(frozen=True)
class Layout:
    """Which arms are shown where. Arms without rows are left out and named.

    tables: arm names by title. references: by title, the arm that all others of a table are compared with, where it is
    not the one that each arm names. baseline, ceiling: the ends of the gap that arms recover. ladder: rungs in
    order. paper_steps: the paper's own steps by rung, in points. compared: the arms of the forest plot and of the gap
    recovered, with the baseline's budget and data. drawn: the arms of the other plots, at most seven.
    """

    arms: Arms
    tables: Mapping[str, Sequence[str]]
    references: Mapping[str, str]
    baseline: str
    ceiling: str
    ladder: Sequence[str]
    paper_steps: Mapping[str, float]
    compared: Sequence[str]
    drawn: Sequence[str]


LAYOUT = Layout(
    ARMS, TABLES, REFERENCES, "baseline-early", "ceiling", LADDER_RUNGS, LADDER_STEPS, TABLES["Does it help"], DRAWN
)


def write_priors(folder: Path, data: Path) -> None:
    """By split and kind of question, the share that the best answer without looking gets right."""
    prior = Prior(json.loads((data / "finetune.json").read_text()))
    shares: dict[str, dict[str, float]] = {}
    for split in QUESTION_SPLITS:
        right: dict[str, list[bool]] = {}
        for line in read_jsonl(data / f"{split}.jsonl"):
            right.setdefault(line["category"], []).append(prior.answer(line["text"]) == line["answer"])
        shares[split] = {kind: sum(values) / len(values) for kind, values in right.items()}
    (folder / PRIORS).write_text(json.dumps(shares, indent=1) + "\n")


def read_priors(folder: Path, split: str) -> dict[str, float]:
    shares: dict[str, dict[str, float]] = json.loads((folder / PRIORS).read_text())
    return shares[split]


def write_report(
    rows: Sequence[Row], folder: Path, layout: Layout, priors: Mapping[str, float], split: str = "heldout"
) -> Path:
    """Writes tables.md and the plots to `folder`, returns the former's path. priors: shares by kind of question."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "tables.md"
    page.write_text(tables_page(rows, layout, priors, split), encoding="utf-8")
    _draw(rows, {row.arm for row in rows}, folder, layout, priors, split)
    return page


def tables_page(rows: Sequence[Row], layout: Layout, priors: Mapping[str, float], split: str) -> str:
    """Every table that these rows have something for. Raises ValueError for rows of several worlds."""
    worlds = sorted({row.world for row in rows})
    if len(worlds) != 1:
        raise ValueError(
            f"a report is about one world, these rows are of {len(worlds)}: {worlds}; see results.by_world"
        )
    return "\n\n".join(_sections(rows, {row.arm for row in rows}, layout, priors, split)) + "\n"


def _sections(rows: Sequence[Row], run: set[str], layout: Layout, priors: Mapping[str, float], split: str) -> list[str]:
    arms = layout.arms
    shown = list(dict.fromkeys(name for names in layout.tables.values() for name in names))
    sections = [_preface(rows, split)]
    for title, names in layout.tables.items():
        if len(run & set(names)) > 1:
            sections += [f"## {title}", scores_table(rows, names, arms, split, layout.references.get(title))]
    sections += ["## By kind of question", kinds_table(rows, shown, arms, priors, split)]
    if {layout.baseline, layout.ceiling} <= run:
        gap = recovery_table(rows, layout.compared, arms, layout.baseline, layout.ceiling, split)
        sections += ["## Share of the gap recovered", gap]
    if len(run & set(layout.ladder)) > 1:
        ladder = ladder_table(rows, layout.ladder, arms, layout.paper_steps, split)
        sections += ["## The paper's ladder", ladder]
    return sections


def _preface(rows: Sequence[Row], split: str) -> str:
    """How to read the tables, and what made their rows."""
    libraries = [name for name in rows[0].versions if name not in CODE]
    made = [f"{name} {' and '.join(sorted({row.versions[name] for row in rows}))}" for name in sorted(libraries)]
    for name in CODE:
        digests = Counter(row.versions.get(name, "not recorded") for row in rows)
        made.append(f"{name} " + " and ".join(f"{digest} ({count} runs)" for digest, count in sorted(digests.items())))
    return (
        f"# {len(rows)} runs in world {rows[0].world}, {split} questions\n\n"
        "Percent of right answers. Brackets: 95 % intervals, Student's t over seeds. A difference is to the arm under "
        "`against`, from the seeds that both have (pairs); p is of the paired t test, then adjusted after Holm for "
        "the comparisons of its table. By kind of question: mean ± standard deviation over seeds. Share of the gap: "
        "percent, with Fieller's intervals over seeds; no gap where the ceiling is not surely above the baseline. "
        "Core s: processor seconds of the training process in both stages, median over seeds. The claims of the ladder "
        "are judged by intervals that hold for all rungs at once (Bonferroni, 95 %): confirmed, refuted (on the other "
        f"side of 0, or short of {SMALLEST_STEP} points), or undecided.\n\n"
        f"Versions: {', '.join(made)}. `source` is a digest of the code, `pieces` of the weights and data that all "
        "runs share."
    )


def _draw(
    rows: Sequence[Row], run: set[str], folder: Path, layout: Layout, priors: Mapping[str, float], split: str
) -> None:
    """The plots that these rows have something for."""
    arms = layout.arms
    drawn = [name for name in layout.drawn if name in run]
    if drawn:
        plots.accuracy_by_kind(rows, drawn, arms, priors, folder / "accuracy_by_kind.png", split)
    if any(arms[name].against in run for name in run & {*layout.compared}):
        plots.forest(rows, layout.compared, arms, folder / "differences.png", split)
    for prefix, draw, name in (
        ("lm", plots.learning_curves, "learning_curves.png"),
        ("residual/", plots.residual_curves, "residuals.png"),
        ("expert_load/", plots.expert_use, "expert_use.png"),
    ):
        if plots.curve_ends(rows, drawn, prefix):
            draw(rows, drawn, arms, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", choices=QUESTION_SPLITS, default="heldout")
    options = parser.parse_args()
    rows, priors = read_rows(options.folder / RESULTS), read_priors(options.folder, options.split)
    print(write_report(rows, options.folder / "report", LAYOUT, priors, options.split))


if __name__ == "__main__":
    main()
