"""The interleaved benchmark's scores, against values counted by hand."""

import json
from pathlib import Path

import pytest

from llava.eval.evaluate_interleave import choice_score, main, open_score
from llava.eval.rouge import rouge_l
from tests.eval.conftest import write_jsonl


def test_rouge_counts_the_words_of_the_longest_common_subsequence_once() -> None:
    """Common: the cat mat (3). Prediction has 4 different words, truth 5: P 3/4, R 3/5, F 2/3."""
    assert rouge_l("the cat a mat", "the cat sat on the mat") == pytest.approx(2 / 3)
    assert rouge_l("a b", "c d") == 0.0
    assert rouge_l("same words", "same words") == pytest.approx(1.0)


def test_rouge_takes_sentences_apart() -> None:
    """b a has in `a b` a subsequence of one word only, but as two sentences both words are found."""
    assert rouge_l("b a", "a b") == pytest.approx(1 / 2)
    assert rouge_l("b. a", "a b") == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("prediction", "truth", "score"),
    [
        ("A", "a", 1.0),
        ("(A)", "A", 1.0),
        ("Answer: B", "B", 1.0),
        ("Option: the dog", "the dog", 0.0),
        ("A.", "A", 1.0),
        ("AB", "A", 0.0),
    ],
)
def test_a_choice_is_its_letter_however_it_is_dressed(prediction: str, truth: str, score: float) -> None:
    assert choice_score(prediction, truth) == score


def test_an_empty_open_answer_scores_nothing() -> None:
    assert open_score("...", "a dog") == 0.0
    assert open_score("A Dog!", "a dog") == pytest.approx(1.0)


def test_datasets_and_categories_are_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RAVEN 1 of 2. WebQA 1, DocVQA 0: text_rich_vqa 50. The open question without a truth is left out."""
    rows = [
        ("RAVEN", "multi-choice", "A", "A"),
        ("RAVEN", "multi-choice", "B", "A"),
        ("WebQA", "open-ended", "a dog", "a dog"),
        ("DocVQA", "open-ended", "cow", "dog"),
        ("DocVQA", "open-ended", "cow", ""),
    ]
    keys = ("dataset", "question_type", "pred_response", "gt_response")
    lines = [{"sample_id": n, **dict(zip(keys, row, strict=True))} for n, row in enumerate(rows)]
    write_jsonl(tmp_path / "result.jsonl", lines)
    main(["--result-dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "RAVEN:  {'Accuracy': 0.5}" in printed
    assert "text_rich_vqa:  50.00\npuzzle:  50.00\n" in printed
    details = json.loads((tmp_path / "eval_dataset_details.json").read_text())
    assert details["DocVQA"] == [{"id": "3", "score": 0.0}]
    assert json.loads((tmp_path / "eval_cat.json").read_text())["puzzle"] == 0.5
    write_jsonl(tmp_path / "result.jsonl", [{**lines[0], "question_type": "essay"}])
    with pytest.raises(ValueError, match="RAVEN has questions of type 'essay'"):
        main(["--result-dir", str(tmp_path)])
