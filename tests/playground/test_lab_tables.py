"""Tables against numbers worked out by hand. With two degrees of freedom p is 1 - t / sqrt(2 + t^2)."""

import math

import pytest

from llava.eval.intervals import Interval, t_quantile
from playground.lab.results import Row
from playground.lab.tables import Comparison, compare, kinds_table, ladder_table, recovery_table, scores_table, verdict
from tests.playground.lab_rows import PRIORS, Arm, cells, row

ARMS = {
    "plain": Arm("LLaVA"),
    "release": Arm("as released", "plain"),
    "paper": Arm("as published", "plain"),
    "ours": Arm("ours", "plain"),
    "ceiling": Arm("reads the teachers", "plain"),
}


def runs(**visual: tuple[float, ...]) -> list[Row]:
    """Seeds 0, 1, ... of each arm."""
    return [row(arm, seed, score) for arm, scores in visual.items() for seed, score in enumerate(scores)]


def p_of(mean: float, deviation: float) -> float:
    """Of three paired differences."""
    t = mean / (deviation / math.sqrt(3))
    return 1 - t / math.sqrt(2 + t * t)


def test_a_difference_is_paired_by_seed_and_its_interval_is_students() -> None:
    """2, 4, 6: deviation 2, and 4.30265 * 2 / sqrt 3 = 4.968."""
    rows = runs(plain=(70, 71, 69), release=(72, 75, 75))
    found = compare(rows, "release", "plain", "heldout")
    assert found is not None
    assert found.seeds == (0, 1, 2)
    assert found.mean == pytest.approx(4)
    assert found.interval == (pytest.approx(4 - 4.968, abs=1e-3), pytest.approx(4 + 4.968, abs=1e-3))
    assert found.p == pytest.approx(p_of(4, 2), abs=1e-9)
    line = cells(scores_table(rows, ("plain", "release"), ARMS))["as released"]
    assert (line["difference"], line["pairs"], line["p"]) == ("+4.0 [-1.0, +9.0]", "3", "0.074")
    assert (line["against"], line["seeds"], line["color"], line["all"]) == ("LLaVA", "3", "74.0", "48.4")
    assert line["core s"] == "141", "of both stages, without evaluation"


def test_the_score_itself_has_an_interval_over_seeds() -> None:
    line = cells(scores_table(runs(plain=(60, 62, 64)), ("plain",), ARMS))["LLaVA"]
    assert line["visual"] == "62.0 [57.0, 67.0]"
    assert (line["against"], line["difference"], line["p"], line["p (Holm)"]) == ("–", "–", "–", "–")


def test_p_is_adjusted_over_the_comparisons_of_the_table() -> None:
    """Differences 9, 10, 11; 2, 4, 6; -1, 1, 3: the smallest p times 3, the next times 2, the last as it is."""
    rows = runs(plain=(50, 50, 50), ours=(59, 60, 61), release=(52, 54, 56), paper=(49, 51, 53))
    lines = cells(scores_table(rows, ("plain", "release", "paper", "ours"), ARMS))
    expected = {"ours": 3 * p_of(10, 1), "as released": 2 * p_of(4, 2), "as published": p_of(1, 2)}
    assert {title: line["p (Holm)"] for title, line in lines.items() if title != "LLaVA"} == {
        title: f"{p:.3f}" for title, p in expected.items()
    }


def test_a_table_can_compare_all_arms_with_one() -> None:
    """Then that one has no comparison of its own, and the others are adjusted for one comparison less."""
    rows = runs(plain=(50, 50, 50), ours=(59, 60, 61), release=(52, 54, 56))
    lines = cells(scores_table(rows, ("plain", "release", "ours"), ARMS, reference="ours"))
    assert [lines[title]["against"] for title in ("ours", "LLaVA", "as released")] == ["–", "ours", "ours"]
    assert lines["LLaVA"]["difference"].startswith("-10.0 [")
    assert lines["LLaVA"]["p (Holm)"] == f"{2 * p_of(10, 1):.3f}"


def test_one_seed_shows_neither_interval_nor_p() -> None:
    rows = runs(plain=(50, 52, 54), release=(58,))
    line = cells(scores_table(rows, ("plain", "release"), ARMS))["as released"]
    shown = [line[title] for title in ("visual", "difference", "pairs", "p", "p (Holm)")]
    assert shown == ["58.0", "+8.0", "1", "one seed", "one seed"]


def test_only_seeds_of_both_are_compared_and_their_number_is_said() -> None:
    rows = [row("plain", seed, 50) for seed in (0, 1, 2)] + [row("release", seed, 50 + seed) for seed in (1, 2, 5)]
    rows += [row("paper", 9, 60)]
    lines = cells(scores_table(rows, ("plain", "release", "paper"), ARMS))
    assert lines["as released"]["pairs"] == "2"
    assert lines["as released"]["difference"].startswith("+1.5 [")
    assert lines["as published"]["difference"] == "no common seed"


def test_arms_without_rows_are_named_below() -> None:
    text = scores_table(runs(plain=(50, 52)), ("plain", "release", "ours"), ARMS)
    assert list(cells(text)) == ["LLaVA"]
    assert text.endswith("\n\nNot run: as released, ours.")


def test_kinds_have_the_deviation_over_seeds_beside_the_prior() -> None:
    rows = [row("plain", seed, 50, digit=20 + 2 * seed) for seed in (0, 1, 2)]
    lines = cells(kinds_table(rows, ("plain",), ARMS, PRIORS | {"digit": 0.172}))
    assert lines["without looking"]["digit"] == "17.2"
    assert lines["LLaVA"]["digit"] == "22.0 ± 2.0"
    assert lines["LLaVA"]["relation"] == "10.0 ± 0.0"


def test_the_gap_recovered_is_a_ratio_of_sums_over_seeds() -> None:
    """Gains 5, 10, 15 of 20 each: one half, give or take 4.303 * 5 / sqrt(3) of 20."""
    rows = runs(plain=(40, 40, 40), ceiling=(60, 60, 60), ours=(45, 50, 55), release=(44,))
    rows = [row(one.arm, one.seed, 100 * one.right["heldout"]["size"].count("1") / 1000, color=90) for one in rows]
    lines = cells(recovery_table(rows, ("plain", "ours", "release", "ceiling"), ARMS, "plain", "ceiling"))
    assert list(lines) == ["reads the teachers minus LLaVA, points", "ours", "as released"]
    assert lines["reads the teachers minus LLaVA, points"]["size"] == "+20.0 [+20.0, +20.0]"
    assert (lines["ours"]["size"], lines["ours"]["visual"]) == ("50 [-12, 112]", "50 [-12, 112]")
    assert lines["ours"]["color"] == "no gap"
    assert lines["as released"]["size"] == "20"


@pytest.mark.parametrize(
    ("low", "high", "paper", "expected"),
    [
        (0.1, 0.5, 0.4, "confirmed"),
        (-1.0, -0.1, 0.4, "refuted"),
        (-0.3, 0.15, 0.4, "refuted"),
        (-0.3, 0.5, 0.4, "undecided"),
        (-0.5, -0.1, -0.2, "confirmed"),
        (0.1, 0.5, -0.2, "refuted"),
        (-0.15, 0.3, -0.2, "refuted"),
        (-0.5, 0.1, -0.2, "undecided"),
    ],
)
def test_a_step_is_judged_by_its_interval(low: float, high: float, paper: float, expected: str) -> None:
    middle, half = (low + high) / 2, (high - low) / 2 / t_quantile(0.95, 1)
    step = Comparison({0: middle - half, 1: middle + half}, middle, Interval(low, high), 0.5)
    assert verdict(step, paper, 1) == expected
    if expected == "confirmed":
        assert verdict(step, paper, 5) == "undecided"  # its interval must hold with four others


def test_the_ladder_compares_each_rung_with_the_one_before() -> None:
    rows = runs(plain=(50, 51, 52), release=(54, 55, 56.1), ours=(54,))
    lines = cells(ladder_table(rows, ("plain", "release", "ours"), ARMS, {"release": 0.4}))
    assert lines["LLaVA"]["the claim, here"] == "–"
    first, second = lines["as released"], lines["ours"]
    assert (first["step"], first["paper's step"], first["the claim, here"]) == (
        "+4.0 [+3.9, +4.2]",
        "+0.4",
        "confirmed",
    )
    assert (second["step"], second["p"], second["the claim, here"]) == ("+0.0", "one seed", "undecided")
