"""Reviews in the published files, with a small program as the judge."""

import json
import sys
from pathlib import Path

import pytest

from llava.eval import eval_gpt_review, eval_gpt_review_bench, eval_gpt_review_visual, summarize_gpt_review
from llava.eval.gpt_review import parse_scores
from tests.eval.conftest import read_rows, write_jsonl

RULES = {
    "llava_bench_conv": {"role": "Assistant", "prompt": "Rate them."},
    "conv": {"role": "Helper", "prompt": "Judge them."},
    "default": {"role": "Assistant", "prompt": "Compare."},
}
# Scores 8 and the number of calls so far, and keeps what it was asked.
JUDGE = """
import pathlib, sys
log = pathlib.Path(sys.argv[1])
asked = sys.stdin.read()
calls = len(log.read_text().split("=====")) if log.exists() else 1
log.open("a").write(asked + "=====")
print(f"8, {calls}\\nBecause.")
"""


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    write_jsonl(
        tmp_path / "q.jsonl", [{"question_id": n, "image": "i", "text": f"Q{n}?", "category": "conv"} for n in (4, 5)]
    )
    for name in ("ref", "hyp"):
        rows = [{"question_id": n, "answer_id": f"{name}{n}", "text": f"{name} says {n}"} for n in (4, 5)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    context = {
        "image": "i",
        "caption": ["A cat.", "It sits."],
        "instances": [{"category": "cat", "bbox": [0, 1, 2, 3]}],
    }
    write_jsonl(tmp_path / "context.jsonl", [context])
    (tmp_path / "rule.json").write_text(json.dumps(RULES))
    (tmp_path / "judge.py").write_text(JUDGE)
    names = [tmp_path / name for name in ("q.jsonl", "ref.jsonl", "hyp.jsonl", "rule.json", "out.jsonl")]
    judge = f"{sys.executable} {tmp_path / 'judge.py'} {tmp_path / 'asked'}"
    question, reference, hypothesis, rule, output = map(str, names)
    return ["-q", question, "-a", reference, hypothesis, "-r", rule, "-o", output, "--judge", judge]


def test_a_bench_review_asks_and_records_as_published(files: list[str], tmp_path: Path) -> None:
    eval_gpt_review_bench.main([*files, "-c", str(tmp_path / "context.jsonl")])
    rows = read_rows(tmp_path / "out.jsonl")
    assert rows[1] == {
        "id": 2,
        "question_id": 5,
        "answer1_id": "ref5",
        "answer2_id": "hyp5",
        "category": "llava_bench_conv",
        "content": "8, 2\nBecause.",
        "tuple": [8.0, 2.0],
    }
    assert (tmp_path / "asked").read_text().split("=====")[0] == (
        "[Context]\nA cat.\nIt sits.\n\n[Question]\nQ4?\n\n"
        "[Assistant 1]\nref says 4\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nhyp says 4\n\n[End of Assistant 2]\n\n[System]\nRate them.\n\n"
    )


def test_reviews_that_are_there_are_not_asked_for_again(files: list[str], tmp_path: Path) -> None:
    flags = [*files, "-c", str(tmp_path / "context.jsonl")]
    eval_gpt_review_bench.main(flags)
    first, _ = (tmp_path / "out.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "out.jsonl").write_bytes(first)
    eval_gpt_review_bench.main(flags)
    assert [row["tuple"] for row in read_rows(tmp_path / "out.jsonl")] == [[8.0, 1.0], [8.0, 3.0]]


def test_the_older_reviews_describe_boxes_or_no_picture(files: list[str], tmp_path: Path) -> None:
    eval_gpt_review_visual.main([*files, "-c", str(tmp_path / "context.jsonl")])
    eval_gpt_review.main([*files[:-4], "-o", str(tmp_path / "text.jsonl"), *files[-2:]])
    asked = (tmp_path / "asked").read_text().split("=====")
    assert asked[0].startswith("[Context]\nA cat.\nIt sits.\n\ncat: [0, 1, 2, 3]\n\n[Question]\nQ4?")
    assert "[Helper 1]\nref says 4" in asked[0]
    assert asked[2].startswith("[Question]\nQ4?")


def test_a_judge_that_fails_and_a_missing_rule_are_named(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the judge 'false' failed with code 1"):
        eval_gpt_review.main([*files[:-1], "false"])
    (tmp_path / "rule.json").write_text("{}")
    with pytest.raises(ValueError, match="no category 'conv'"):
        eval_gpt_review.main(files)


def test_questions_without_pictures_fall_back_to_the_default_rule(files: list[str], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{**row, "category": "generic"} for row in read_rows(tmp_path / "q.jsonl")])
    eval_gpt_review.main(files)
    assert (tmp_path / "asked").read_text().split("=====")[0].endswith("[System]\nCompare.\n\n")
    assert [row["category"] for row in read_rows(tmp_path / "out.jsonl")] == ["generic"] * 2
    with pytest.raises(ValueError, match="no category 'generic'"):
        eval_gpt_review_visual.main([*files, "-c", str(tmp_path / "context.jsonl")])


def test_the_judge_is_told_how_long_a_review_may_be(files: list[str], tmp_path: Path) -> None:
    judge = "import os; print(os.environ['MAX_TOKENS'], 1)"
    (tmp_path / "judge.py").write_text(judge)
    eval_gpt_review.main([*files, "--max-tokens", "77"])
    assert read_rows(tmp_path / "out.jsonl")[0]["tuple"] == [77.0, 1.0]


@pytest.mark.parametrize("order", [[5, 4], [4], [4, 5, 6]])
def test_answers_to_other_questions_are_not_reviewed(files: list[str], tmp_path: Path, order: list[int]) -> None:
    write_jsonl(tmp_path / "hyp.jsonl", [{"question_id": n, "text": "x"} for n in order])
    with pytest.raises(ValueError, match=r"line \d: the question's id is \w+, the hypothesis answer's \w+"):
        eval_gpt_review.main(files)
    assert not (tmp_path / "asked").exists()


def test_reviews_of_other_answers_are_not_continued(files: list[str], tmp_path: Path) -> None:
    eval_gpt_review.main(files)
    before = (tmp_path / "out.jsonl").read_bytes()
    write_jsonl(tmp_path / "hyp.jsonl", [{"question_id": n, "answer_id": f"new{n}", "text": "x"} for n in (4, 5)])
    with pytest.raises(ValueError, match=r"out\.jsonl:1 is no review of this question and these answers; name another"):
        eval_gpt_review.main(files)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_a_torn_last_review_is_asked_for_again(files: list[str], tmp_path: Path) -> None:
    eval_gpt_review.main(files)
    first, second = (tmp_path / "out.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "out.jsonl").write_bytes(first + second[:30])
    eval_gpt_review.main(files)
    assert [row["tuple"] for row in read_rows(tmp_path / "out.jsonl")] == [[8.0, 1.0], [8.0, 3.0]]


@pytest.mark.parametrize(
    ("review", "scores"), [("8 9.5\nx", [8, 9.5]), ("8,9", [8, 9]), ("fine", [-1, -1]), ("8", [-1, -1])]
)
def test_scores_are_the_two_numbers_of_the_first_line(review: str, scores: list[float]) -> None:
    assert parse_scores(review) == scores


def test_a_folder_of_reviews_is_read_whatever_they_are_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"holds no \.jsonl files of reviews"):
        summarize_gpt_review.main(["-d", str(tmp_path)])
    rows = [{"question_id": 0, "tuple": [8, 4]}]
    for name in ("llava-v1.5-13b", "review_mine"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        summarize_gpt_review.main(["-d", str(tmp_path)])
        assert capsys.readouterr().out.splitlines()[0] == name


def test_the_summary_compares_means_and_leaves_failures_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """conv: (8 + 6) / 2 = 7 and (4 + 3) / 2 = 3.5, 50 %. detail: 10 and 9, 90 %. all: 8 and 16 / 3, 66.7 %."""
    reviews = [("conv", [8, 4]), ("conv", [6, 3]), ("detail", [10, 9]), ("detail", [-1, -1]), ("detail", [1, 1])]
    rows = [{"question_id": n, "category": name, "tuple": scores} for n, (name, scores) in enumerate(reviews)]
    write_jsonl(tmp_path / "review_mine.jsonl", rows)
    summarize_gpt_review.main(["-d", str(tmp_path), "-i", "4"])
    assert capsys.readouterr().out.splitlines() == [
        "review_mine",
        "all 66.7 80.0 53.3",
        "conv 50.0 70.0 35.0",
        "detail 90.0 100.0 90.0",
        "1 of 5 reviews hold no two scores and are left out",
        "=" * 33,
    ]
