"""The figures on the evidence page are those of the rows beside it."""

from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from llava.eval.intervals import holm, ratio_interval, t_interval
from playground.lab.arms import ARMS, LADDER_RUNGS, LADDER_STEPS, TABLES
from playground.lab.report import LAYOUT, read_priors, tables_page
from playground.lab.results import Row, headline, points, read_rows
from playground.lab.run import Shared, portable, stages
from playground.lab.tables import Comparison, compare, core_seconds, verdict
from playground.lab.world import DECISIVE
from playground.questions import VISUAL_KINDS
from playground.recipe import RECIPES

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "evidence.md").read_text()
TEXT = " ".join(PAGE.split())
ROWS = read_rows(DOCS / "evidence" / "results.jsonl")
NOW = read_rows(DOCS / "evidence" / "anew" / "results.jsonl")
EXPLORED = read_rows(DOCS / "evidence" / "exploration.jsonl")
SHOWN = {
    "baseline": "LLaVA, tower trained in stage 2",
    "baseline-early": "LLaVA, both stages (the baseline)",
    "early-time": "LLaVA, both stages, as much processor time as ours",
    "truth": "the teachers' labels in place of the teachers, no experts, both stages",
    "frozen": "LLaVA, tower frozen",
    "experts": "experts without teachers, both stages",
    "release": "MoVE-KD as released, stage 2",
    "paper": "MoVE-KD as the paper says, stage 2",
    "paper-early": "MoVE-KD as the paper says, both stages",
    "ours": "MoVE-KD, ours, both stages",
    "ours-no-experts": "teachers, no experts, both stages",
    "ceiling": "the language model reads CLIP and the teachers",
}
ANEW = {
    "ours": "MoVE-KD, ours, both stages",
    "ours-no-experts": "teachers, no experts, both stages",
    "paper-early": "MoVE-KD as the paper says, both stages",
    "paper-weights": "the same with the weights of ours",
    "truth": "the teachers' labels in place of the teachers, no experts, both stages",
}
WEIGHTS = ("weight-1", "ours", "weight-8", "weight-16")
SHARES = ("clip-0", "ours", "clip-0.2", "clip-0.8")
SEEDS = {arm: len(points(ROWS, arm, "visual", "heldout")) for arm in ARMS}
PARTS = [name for name in TABLES["Ours without each of its parts"] if name != "ours"]
RIVALS = (("cosine", ROWS), ("own-experts", ROWS), ("balanced", NOW), ("dropping", NOW))


@pytest.mark.parametrize("folder", [DOCS / "evidence", DOCS / "evidence" / "anew"], ids=["first", "anew"])
def test_every_table_is_that_of_the_rows(folder: Path) -> None:
    page = tables_page(read_rows(folder / "results.jsonl"), LAYOUT, read_priors(folder, "heldout"), "heldout")
    assert (folder / "report" / "tables.md").read_text() == page


@pytest.mark.parametrize("arm", SHOWN)
def test_an_arm_has_its_row(arm: str) -> None:
    scores = list(points(ROWS, arm, "visual", "heldout").values())
    assert len(scores) >= 5
    low, high = t_interval(scores)
    kinds = [fmean(points(ROWS, arm, kind, "heldout").values()) for kind in VISUAL_KINDS]
    cells = [f"{fmean(scores):.1f} [{low:.1f}, {high:.1f}]", *(f"{kind:.1f}" for kind in kinds)]
    assert f"| {SHOWN[arm]} | {' | '.join(cells)} | {core_seconds(ROWS, arm):.0f} |" in PAGE


def test_the_best_blind_answers_have_their_row() -> None:
    priors = read_priors(DOCS / "evidence", "heldout")
    kinds = " | ".join(f"{100 * priors[kind]:.1f}" for kind in VISUAL_KINDS)
    assert f"| without looking | {100 * fmean(priors[kind] for kind in VISUAL_KINDS):.1f} | {kinds} |" in PAGE


def difference(arm: str, against: str, measure: str = "visual", rows: list[Row] = ROWS) -> Comparison:
    found = compare(rows, arm, against, "heldout", measure)
    assert found is not None
    assert len(found.seeds) >= 5
    return found


def between(found: Comparison) -> str:
    return f"{found.mean:+z.1f} [{found.interval.low:+z.1f}, {found.interval.high:+z.1f}]"


def probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def test_changes_of_ours_have_their_differences() -> None:
    found = [difference(name, "ours") for name in PARTS]
    for name, one, adjusted in zip(PARTS, found, holm([one.p for one in found]), strict=True):
        mean = fmean(points(ROWS, name, "visual", "heldout").values())
        assert f"| {ARMS[name].title} | {mean:.1f} | {between(one)} | {probability(adjusted)} |" in PAGE


def test_what_others_do_has_its_differences_to_ours_of_the_same_lab() -> None:
    found = [difference(name, "ours", rows=rows) for name, rows in RIVALS]
    for (name, rows), one, adjusted in zip(RIVALS, found, holm([one.p for one in found]), strict=True):
        mean = fmean(points(rows, name, "visual", "heldout").values())
        cells = "first" if rows is ROWS else "second", f"{mean:.1f}", between(one), probability(adjusted)
        assert f"| {ARMS[name].title} | {' | '.join(cells)} |" in PAGE


def test_the_second_lab_has_its_rows() -> None:
    found = [difference(name, "baseline-early", rows=NOW) for name in ANEW]
    for name, one, adjusted in zip(ANEW, found, holm([one.p for one in found]), strict=True):
        scores = list(points(NOW, name, "visual", "heldout").values())
        low, high = t_interval(scores)
        kinds = [fmean(points(NOW, name, kind, "heldout").values()) for kind in ("texture", "digit", "size")]
        cells = [f"{fmean(scores):.1f} [{low:.1f}, {high:.1f}]", *(f"{kind:.1f}" for kind in kinds), between(one)]
        assert f"| {ANEW[name]} | {' | '.join(cells)} | {probability(adjusted)} |" in PAGE


def test_the_gains_of_both_labs_are_told_from_chance() -> None:
    names = [name for name in TABLES["Does it help"] if ARMS[name].against and SEEDS[name] >= 5]
    first = holm([difference(name, ARMS[name].against or "").p for name in names])
    second = holm([difference(name, "baseline-early", rows=NOW).p for name in ANEW])
    adjusted = [dict(zip(names, first, strict=True)), dict(zip(ANEW, second, strict=True))]
    assert max(table[name] for table in adjusted for name in ("ours", "ours-no-experts")) < 0.01
    assert "All four gains of the first two rows have p < 0.01 after correction" in TEXT


def test_what_is_said_of_gradients_that_are_not_clipped_is_what_was_found() -> None:
    found = compare(NOW, "ours-unclipped", "baseline-early-unclipped", "heldout")
    assert found is not None
    assert len(found.seeds) == 3
    assert f"with three seeds, ours is {between(found)} above LLaVA" in TEXT
    norms = [
        norm for row in NOW for name, curve in row.curves.items() if name.endswith("grad_norm") for _, norm in curve
    ]
    assert f"{100 * fmean(norm > 1 for norm in norms):.0f} % of the logged norms are larger" in TEXT


@pytest.mark.parametrize("arm", ["ours", "ours-no-experts"])
def test_what_is_said_of_the_scenes_share_of_the_error_is_what_the_answers_say(arm: str) -> None:
    """Standard error of the mean difference over the questions of each kind, then of the mean of kinds."""
    variance = 0.0
    for kind in VISUAL_KINDS:
        ours, theirs = (
            np.mean([[mark == "1" for mark in row.right["heldout"][kind]] for row in ROWS if row.arm == name], axis=0)
            for name in (arm, "baseline-early")
        )
        variance += (ours - theirs).var(ddof=1) / len(ours)
    assert f"a standard error of {100 * variance**0.5 / len(VISUAL_KINDS):.1f} points" in TEXT


def test_the_page_counts_the_arms() -> None:
    assert f"`--arms all` runs all {len(ARMS)} arms" in TEXT


def test_the_page_begins_with_both_labs() -> None:
    lead = PAGE.partition("## How it was measured")[0]
    for name in ("ours-no-experts", "ours", "paper-early", "truth"):
        first, second = (between(difference(name, "baseline-early", rows=rows)) for rows in (ROWS, NOW))
        assert f"{first}** | {second} |" in lead or f"{first} | {second} |" in lead
    assert f"| | {between(difference('paper-weights', 'baseline-early', rows=NOW))} |" in lead


def test_what_is_said_of_the_start_of_experts_is_corrected_for_the_comparisons_of_its_table() -> None:
    found = {name: difference(name, "ours").p for name in PARTS}
    adjusted = dict(zip(found, holm(list(found.values())), strict=True))["ours-kaiming"]
    assert f"(p = {found['ours-kaiming']:.3f} before correction, = {adjusted:.3f} after)" in TEXT


def test_teachers_alone_and_left_out_have_their_rows() -> None:
    for name in (name for name in TABLES["Which teachers"] if SEEDS[name]):
        kinds = (fmean(points(ROWS, name, kind, "heldout").values()) for kind in ("visual", "texture", "digit", "size"))
        to_ours = "–" if name == "ours" else between(difference(name, "ours"))
        cells = [*(f"{kind:.1f}" for kind in kinds), between(difference(name, "baseline-early")), to_ours]
        assert f"| {ARMS[name].title} | {' | '.join(cells)} |" in PAGE


def test_every_rung_of_the_ladder_has_its_step_and_verdict() -> None:
    steps = {rung: difference(rung, below) for below, rung in pairwise(LADDER_RUNGS)}
    held = holm([step.p for step in steps.values()])
    for (rung, step), adjusted in zip(steps.items(), held, strict=True):
        paper = LADDER_STEPS[rung]
        mean = fmean(points(ROWS, rung, "visual", "heldout").values())
        cells = f"{mean:.1f} | {between(step)} | {adjusted:.3f} | {paper:+.1f} | {verdict(step, paper, len(steps))}"
        assert f"| {ARMS[rung].title} | {cells} |" in PAGE


@pytest.mark.parametrize("label", ["-short", "", "-long", "-little"])
def test_another_budget_has_its_row(label: str) -> None:
    arms = f"baseline-early{label}", f"ours{label}"
    found = difference(arms[1], arms[0])
    scores = (f"{fmean(points(ROWS, arm, 'visual', 'heldout').values()):.1f}" for arm in arms)
    kinds = (f"{difference(arms[1], arms[0], kind).mean:+z.1f}" for kind in ("texture", "digit", "size"))
    core = ", ".join(f"{core_seconds(ROWS, arm):.0f}" for arm in arms)
    assert f"| {' | '.join((*scores, between(found), probability(found.p), *kinds, core))} |" in PAGE


def test_what_is_said_of_twice_the_steps_is_what_was_found() -> None:
    behind = difference("ours", "baseline-early-long")
    assert f"is {behind.mean:.1f} points below ours at the usual length" in TEXT
    assert f"({between(behind)})" in TEXT
    digits = sorted(points(ROWS, "ours-long", "digit", "heldout").values())
    assert f"Digits then come to {digits[2]:.0f} or more in three seeds of five and to {digits[1]:.0f} at most" in TEXT


@pytest.mark.parametrize("name", ["other", "seed1", "gap"])
def test_another_world_has_its_rows(name: str) -> None:
    rows = read_rows(DOCS / "evidence" / f"{name}.jsonl")
    assert {row.world for row in rows}.isdisjoint({row.world for row in ROWS})
    cells = []
    for arm in ("baseline-early", "ours"):
        scored = points(rows, arm, "visual", "heldout")
        cells.append(", ".join(f"{scored[seed]:.1f}" for seed in sorted(scored)))
    found = compare(rows, "ours", "baseline-early", "heldout")
    assert found is not None
    gains = [compare(rows, "ours", "baseline-early", "heldout", kind) for kind in ("texture", "size", "digit")]
    kinds = " | ".join(between(gain) for gain in gains if gain)
    assert f"| {cells[0]} | {cells[1]} | {between(found)} | {probability(found.p)} | {kinds} |" in PAGE
    assert between(found) in TEXT.partition("## How it was measured")[0]


def test_the_weight_was_chosen_on_validation_questions() -> None:
    weights, shares = (
        [fmean(points(ROWS, arm, "visual", "validation")[seed] for seed in (0, 1)) for arm in arms]
        for arms in (WEIGHTS, SHARES)
    )
    assert weights[1] == max(weights)
    assert "`--kd_w` 1, 4, 8 and 16 get {:.1f}, {:.1f}, {:.1f} and {:.1f};".format(*weights) in TEXT
    assert "of 0, 0.05, 0.2 and 0.8 gets {:.1f}, {:.1f}, {:.1f} and {:.1f};".format(*shares) in TEXT
    ledger = (DOCS / "method.md").read_text()
    assert "share 0, 0.05, 0.2, 0.8 gets {:.1f}, {:.1f}, {:.1f}, {:.1f};".format(*shares) in ledger
    assert "weight 1, 4, 8, 16 gets {:.1f}, {:.1f}, {:.1f}, {:.1f} |".format(*weights) in ledger


def test_the_differences_in_the_text_are_those_of_the_rows() -> None:
    pairs = (
        ("ours", "baseline-early"),
        ("ours", "early-time"),
        ("truth", "ours-no-experts"),
        ("release", "baseline"),
        ("ours", "baseline"),
        ("ours", "paper"),
        ("baseline-early", "baseline"),
        ("ours-no-experts", "baseline-early"),
        ("experts", "baseline-early"),
        ("cosine", "ours"),
    )
    assert [pair for pair in pairs if between(difference(*pair)) not in TEXT] == []
    ours = difference("ours", "baseline-early")
    low, high = ours.interval
    readme = " ".join((DOCS.parent / "README.md").read_text().split())
    assert f"{ours.mean:+.1f} points [{low:+.1f}, {high:+.1f}] for the whole recipe" in readme
    assert f"{between(difference('ours-no-experts', 'baseline-early'))} for distillation without experts" in readme
    elsewhere = compare(read_rows(DOCS / "evidence" / "seed1.jsonl"), "ours", "baseline-early", "heldout")
    assert elsewhere is not None
    assert f"in another draw of the world, three seeds, {between(elsewhere)}" in readme
    assert f"in twice the steps, {between(difference('ours-long', 'baseline-early-long'))}" in readme
    anew = between(difference("ours", "baseline-early", rows=NOW))
    assert f"in a lab made anew, with another CLIP, {anew}" in readme
    gap = difference("ceiling", "baseline-early")
    low, high = ratio_interval(list(ours.values.values()), list(gap.values.values()))
    share = f"{100 * ours.mean / gap.mean:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
    assert f"the whole recipe recovers {share} of its gain of {gap.mean:.1f}" in TEXT
    assert between(difference("ours-raw", "ours", "all")) in TEXT
    for kind in ("texture", "size", "digit"):
        assert f"({difference('ours', 'baseline-early', kind).mean:+.1f})" in PAGE
    heads = {kind: difference("ours-teacher-heads", "baseline-early", kind).mean for kind in VISUAL_KINDS}
    assert "({texture:+.1f} in texture and {digit:+.1f} in digits over".format(**heads) in TEXT
    assert "({color:+.1f} in color, {shape:+.1f} in shape, {count:+.1f} in counting)".format(**heads) in TEXT


def test_what_is_said_of_the_release_is_corrected_for_the_comparisons_of_its_table() -> None:
    names = [name for name in TABLES["Does it help"] if SEEDS[name] >= 5 and ARMS[name].against is not None]
    found = [difference(name, ARMS[name].against or "") for name in names]
    adjusted = dict(zip(names, holm([one.p for one in found]), strict=True))["release"]
    p = difference("release", "baseline").p
    assert f"(p = {p:.3f} before and {adjusted:.3f} after correction for the comparisons of its table)" in TEXT


def test_what_the_ledger_says_of_parts_is_what_was_found() -> None:
    ledger = (DOCS / "method.md").read_text()
    for name in PARTS:
        worth = difference(name, "ours")
        assert f"{-worth.mean:+.1f} [{-worth.interval.high:+.1f}, {-worth.interval.low:+.1f}]" in ledger


def test_validation_scores_in_the_text_are_those_of_the_exploration() -> None:
    scores = {row.arm: 100 * headline(row, "validation") for row in EXPLORED}
    assert len(scores) == 7
    assert [arm for arm, score in scores.items() if f"{score:.1f}" not in PAGE] == []


def meaning(line: list[str]) -> dict[str, tuple[str, ...]]:
    """Values by flag, of which the last one counts, without the one that only says how often to log."""
    found: dict[str, tuple[str, ...]] = {}
    flag = ""
    for word in line:
        flag = word if word.startswith("--") else flag
        found[flag] = () if word == flag else (*found[flag], word)
    del found["--logging_steps"]
    return found


@pytest.mark.parametrize("rows", [ROWS, NOW, EXPLORED], ids=["results", "now", "exploration"])
def test_every_row_was_made_by_the_command_lines_of_its_arm(rows: list[Row]) -> None:
    shared, run = Shared(Path("/lab/shared"), RECIPES["lab"]), Path("/lab/run")
    for row in rows:
        today = portable(stages(ARMS[row.arm], shared, row.seed, run), shared, run)
        assert {stage: meaning(line) for stage, line in row.flags.items()} == {
            stage: meaning(line) for stage, line in today.items()
        }, f"{row.arm}, seed {row.seed}"
    assert {row.world for row in rows} == {shared.recipe.fingerprint(*DECISIVE)}
