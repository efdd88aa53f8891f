"""The figures on the evidence page are those of the rows beside it."""

from pathlib import Path
from statistics import fmean

from llava.eval.statistics import holm, t_interval
from playground.lab.report import read_priors
from playground.lab.results import headline, points, read_rows
from playground.lab.tables import Comparison, compare, core_seconds
from playground.questions import VISUAL_KINDS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "evidence.md").read_text()
ROWS = read_rows(DOCS / "evidence" / "results.jsonl")
SHOWN = {
    "baseline": "LLaVA, tower trained in stage 2 (the baseline)",
    "paper": "MoVE-KD as the paper says",
    "ours": "MoVE-KD, ours",
    "ceiling": "the language model reads CLIP and the teachers (the ceiling)",
}


def test_the_table_is_that_of_the_rows() -> None:
    for arm, title in SHOWN.items():
        scores = list(points(ROWS, arm, "visual", "heldout").values())
        assert len(scores) == 5
        low, high = t_interval(scores)
        kinds = [fmean(points(ROWS, arm, kind, "heldout").values()) for kind in VISUAL_KINDS]
        cells = [f"{fmean(scores):.1f} [{low:.1f}, {high:.1f}]", *(f"{kind:.1f}" for kind in kinds)]
        assert f"| {title} | {' | '.join(cells)} | {core_seconds(ROWS, arm):.0f} |" in PAGE
    priors = read_priors(DOCS / "evidence", "heldout")
    assert f"| without looking | {100 * fmean(priors[kind] for kind in VISUAL_KINDS):.1f} |" in PAGE


def difference(arm: str, against: str) -> Comparison:
    found = compare(ROWS, arm, against, "heldout")
    assert found is not None
    return found


def test_the_differences_in_the_text_are_those_of_the_rows() -> None:
    ours, paper, ceiling = (difference(arm, "baseline") for arm in ("ours", "paper", "ceiling"))
    adjusted = holm([ours.p, paper.p, ceiling.p])[0]
    assert f"{ours.mean:+.1f} points [{ours.interval.low:+.1f}, {ours.interval.high:+.1f}]" in PAGE
    assert f"p = {ours.p:.3f} ({adjusted:.3f} after" in PAGE
    assert f"{paper.mean:+.1f} [{paper.interval.low:+.1f}, {paper.interval.high:+.1f}]" in PAGE
    assert f"{ceiling.mean:.1f} above the baseline" in PAGE
    direct = difference("ours", "paper")
    assert f"{direct.mean:.1f} [{direct.interval.low:.1f}, {direct.interval.high:.1f}] above it" in PAGE
    assert f"(p = {direct.p:.3f})" in PAGE


def test_validation_scores_in_the_text_are_those_of_the_exploration() -> None:
    scores = {row.arm: 100 * headline(row, "validation") for row in read_rows(DOCS / "evidence" / "exploration.jsonl")}
    assert len(scores) == 16
    missing = [arm for arm, score in scores.items() if f"{score:.1f}" not in PAGE]
    assert missing == ["ceiling"], "every other exploration is on the page"
