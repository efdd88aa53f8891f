from pathlib import Path

import pytest

from playground.lab.results import (
    accuracy,
    append_row,
    by_world,
    differences,
    headline,
    points,
    read_rows,
)
from playground.questions import KINDS
from tests.playground.lab_rows import row


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    written = [row("plain", 0, curves={"lm": [(10, 2.5), (20, 1.25)]}), row("plain", 1), row("release", 0)]
    assert read_rows(path) == []
    for one in written:
        append_row(path, one)
    assert read_rows(path) == written


def test_of_the_same_arm_seed_and_world_the_later_row_counts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for one in (row("plain", 0, 40), row("plain", 0, 45, world="w1"), row("plain", 1, 60), row("plain", 0, 70)):
        append_row(path, one)
    found = [(one.seed, one.world, headline(one, "heldout")) for one in read_rows(path)]
    assert found == [(0, "w1", pytest.approx(0.45)), (1, "w0", pytest.approx(0.6)), (0, "w0", pytest.approx(0.7))]


def test_a_torn_last_line_is_named_and_a_later_row_is_not_glued_to_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_row(path, row("plain", 0))
    append_row(path, row("plain", 1))
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2 is not a whole row .* delete the line"):
        read_rows(path)
    append_row(path, row("plain", 2))
    with pytest.raises(ValueError, match="line 2 is not"):
        read_rows(path)
    lines = path.read_text().splitlines()
    path.write_text(f"{lines[0]}\n\n{lines[2]}\n")
    assert [one.seed for one in read_rows(path)] == [0, 2]


def test_a_line_without_all_fields_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"arm": "plain", "seed": 0, "curves": {}}\n')
    with pytest.raises(ValueError, match=r"line 1 is not a whole row .*world"):
        read_rows(path)


def test_the_headline_is_the_mean_of_the_visual_kinds_and_all_of_every_kind() -> None:
    one = row("plain", 3, 60, color=90, relation=40)
    assert accuracy(one, "heldout", "color") == pytest.approx(0.9)
    assert headline(one, "heldout") == pytest.approx((0.9 + 5 * 0.6) / 6)
    assert points([one], "plain", "visual", "heldout") == {3: pytest.approx(65)}
    assert points([one], "plain", "all", "heldout") == {3: pytest.approx((90 + 5 * 60 + 40 + 3 * 10) / len(KINDS))}


def test_a_split_that_was_not_asked_is_refused() -> None:
    with pytest.raises(ValueError, match="plain, seed 0 answered no 'color' question of 'validation'"):
        accuracy(row("plain", 0), "validation", "color")


def test_differences_are_of_the_seeds_that_both_arms_have() -> None:
    rows = [row("plain", seed, 50 + seed) for seed in (0, 1, 2)] + [row("release", seed, 60) for seed in (4, 2, 1)]
    found = differences(rows, "release", "plain", "visual", "heldout")
    assert list(found) == [1, 2]
    assert list(found.values()) == pytest.approx([9, 8])


def test_rows_of_two_worlds_are_kept_apart() -> None:
    rows = [row("plain", 0), row("plain", 0, world="w1"), row("release", 0)]
    assert by_world(rows) == {"w0": [rows[0], rows[2]], "w1": [rows[1]]}
    with pytest.raises(ValueError, match="rows of 2 worlds \\(w0, w1\\) cannot be compared"):
        points(rows, "plain", "visual", "heldout")
