"""Scorers against values counted by hand, and what they refuse."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llava.eval import eval_gqa, eval_mmbench, eval_mme, eval_pope, eval_science_qa, eval_textvqa
from llava.eval.scores import read_answers, texts_by_id
from tests.eval.conftest import Row, read_rows, write_jsonl


def answers(path: Path, **texts: str) -> Path:
    return write_jsonl(path, [{"question_id": key, "prompt": "p", "text": text} for key, text in texts.items()])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", True),
        ("No", False),
        ("No, there is not.", False),
        ("There is no dog. Yes.", False),
        ("Yes. There is no cat.", True),
        ("I do not, sorry", False),
        ("Nothing", True),
        ("NO", True),
    ],
)
def test_pope_reads_the_first_sentence_for_no_and_not(text: str, expected: bool) -> None:
    assert eval_pope.says_yes(text) is expected


def pope_files(folder: Path) -> tuple[Path, Path]:
    """Two categories whose questions are mixed, and answered in another order."""
    labels = {"popular": ["yes", "no", "yes", "no"], "random": ["yes", "no"]}
    questions, order = (
        [],
        [("popular", 0), ("random", 0), ("popular", 1), ("popular", 2), ("random", 1), ("popular", 3)],
    )
    for number, (category, index) in enumerate(order):
        questions.append({"question_id": number, "category": category, "image": f"{category}{index // 2}", "text": "q"})
    for category, values in labels.items():
        rows = [{"label": value, "image": f"{category}{index // 2}"} for index, value in enumerate(values)]
        write_jsonl(folder / "coco" / f"coco_pope_{category}.json", rows)
    said = {0: "Yes", 1: "Yes", 2: "Yes", 3: "No", 4: "No", 5: "no"}
    given = [{"question_id": key, "text": said[key]} for key in (5, 3, 0, 4, 1, 2)]
    return write_jsonl(folder / "q.jsonl", questions), write_jsonl(folder / "a.jsonl", given)


def test_pope_pairs_answers_with_labels_by_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """popular: yes/yes, yes/no, no/yes, no/no -> 1 1 1 1, F1 1/2. random: all right, F1 1. Mean 3/4."""
    questions, given = pope_files(tmp_path)
    flags = ["--annotation-dir", tmp_path / "coco", "--question-file", questions, "--result-file", given]
    eval_pope.main([*map(str, flags), "--scores-file", str(tmp_path / "s.jsonl")])
    printed = capsys.readouterr().out
    assert "Category: popular, # samples: 4\nTP\tFP\tTN\tFN\n1\t1\t1\t1\nAccuracy: 0.5\n" in printed
    assert "0.500, 0.500, 0.500, 0.500, 0.500" in printed
    assert "Category: random, # samples: 2\nTP\tFP\tTN\tFN\n1\t0\t1\t0\n" in printed
    assert printed.endswith("Mean F1 score: 0.75\n")
    scores = {row["question_id"]: (row["score"], row["cluster"]) for row in read_rows(tmp_path / "s.jsonl")}
    assert scores == {
        "0": (1.0, "popular0"), "2": (0.0, "popular0"), "3": (0.0, "popular1"), "5": (1.0, "popular1"),
        "1": (1.0, "random0"), "4": (1.0, "random0"),
    }  # fmt: skip


def test_pope_refuses_missing_answers_and_labels_of_other_pictures(tmp_path: Path) -> None:
    questions, given = pope_files(tmp_path)
    flags = [
        str(x) for x in ("--annotation-dir", tmp_path / "coco", "--question-file", questions, "--result-file", given)
    ]
    write_jsonl(given, read_rows(given)[:-1])
    with pytest.raises(ValueError, match="popular: 1 questions have no answer, the first is 2"):
        eval_pope.main(flags)
    questions, given = pope_files(tmp_path)
    labels = tmp_path / "coco" / "coco_pope_random.json"
    write_jsonl(labels, [{**row, "image": "other"} for row in read_rows(labels)])
    with pytest.raises(ValueError, match="question 1 is about random0, its label other"):
        eval_pope.main(flags)


def test_f1_of_a_model_that_never_says_yes_is_zero() -> None:
    counts = eval_pope.Counts.of([False, False], [True, False])
    assert (counts.f1, counts.precision, counts.accuracy, counts.yes_ratio) == (0.0, 0.0, 0.5, 0.0)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B. the dog", "B"),
        ("The answer is C.", "C"),
        ("So: The answer is C, I think", "C"),
        ("The answer is A. The answer is B.", None),
        ("B) the dog", None),
        ("b", None),
        ("", None),
    ],
)
def test_science_answers_are_read_as_published(text: str, letter: str | None) -> None:
    assert eval_science_qa.chosen_letter(text) == letter


def test_science_accuracy_counts_pictures_apart_and_missing_answers_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Right: 1 (picture) and 3. Wrong: 2 (picture; there is no choice E) and 4 (no answer). 50 % of both."""
    problems = {
        key: {"choices": ["x", "y"], "answer": answer, "image": image}
        for key, answer, image in (("1", 0, "i.png"), ("2", 1, "i.png"), ("3", 1, None), ("4", 0, None), ("5", 0, None))
    }
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["1", "2", "3", "4"], "val": ["5"]}))
    given = answers(tmp_path / "a.jsonl", **{"1": "A", "2": "E", "3": "The answer is B."})
    flags = ["--base-dir", tmp_path, "--result-file", given, "--output-file", tmp_path / "o", "--output-result"]
    eval_science_qa.main([*map(str, flags), str(tmp_path / "r.json")])
    printed = capsys.readouterr().out
    assert "Total: 4, Correct: 2, Accuracy: 50.00%, IMG-Accuracy: 50.00%" in printed
    assert "1 questions have no answer" in printed
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["acc"], result["correct"], result["count"]) == (50.0, 2, 4)
    assert result["results"] == {"1": 0, "2": -1, "3": 1, "4": -1}
    graded = json.loads((tmp_path / "o").read_text())
    assert [row["question_id"] for row in graded["correct"]] == ["1", "3"]
    assert [row["parsed_ans"] for row in graded["incorrect"]] == ["E", "FAILED"]
    with pytest.raises(ValueError, match=r"no split 'tset' in .*pid_splits\.json; there are test, val"):
        eval_science_qa.main([*map(str, flags), str(tmp_path / "r.json"), "--split", "tset"])


@pytest.mark.parametrize(
    "prompt",
    [
        "What Brand?\nReference OCR token: a, b\nAnswer the question using a single word or phrase.",
        "Reference OCR token: a, b\nWhat Brand?\nAnswer the question using a single word or phrase.",
        "What Brand?\nAnswer the question using a single word or phrase.",
        "OCR tokens: a, b\nQuestion: What Brand? Short answer:",
    ],
)
def test_the_textvqa_question_is_found_in_every_published_prompt(prompt: str) -> None:
    assert eval_textvqa.question_of(prompt) == "what brand?"


def test_textvqa_scores_questions_about_one_picture_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Question 1: 2 of 10 agree -> (2 * 1/3 + 8 * 2/3) / 10 = 0.6. Question 2: all agree -> 1. Mean 80 %."""
    annotations = [
        {"image_id": "i", "question": "What brand?", "answers": ["Nike"] * 2 + ["adidas"] * 8},
        {"image_id": "i", "question": "How many?", "answers": ["2"] * 10},
    ]
    (tmp_path / "val.json").write_text(json.dumps({"data": annotations}))
    rows: list[Row] = [
        {"question_id": "i", "prompt": "What brand?\nShort.", "text": "nike."},
        {"question_id": "i", "prompt": "How many?\nShort.", "text": "Two"},
    ]
    given = write_jsonl(tmp_path / "run.jsonl", rows)
    eval_textvqa.main(["--annotation-file", str(tmp_path / "val.json"), "--result-file", str(given)])
    assert capsys.readouterr().out == "run\nSamples: 2\nAccuracy: 80.00%\n\n"
    write_jsonl(given, [{"question_id": "j", "prompt": "What brand?\nShort.", "text": "nike"}])
    with pytest.raises(ValueError, match="no annotation for question 'what brand\\?' about picture j"):
        eval_textvqa.main(["--annotation-file", str(tmp_path / "val.json"), "--result-dir", str(tmp_path)])


def test_gqa_needs_the_very_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = {
        key: {"answer": answer, "imageId": "n1"} for key, answer in (("1", "yes"), ("2", "left"), ("3", "red"))
    }
    (tmp_path / "q.json").write_text(json.dumps(questions))
    given = answers(tmp_path / "a.jsonl", **{"1": "Yes.", "2": "the left", "3": "Red"})
    flags = ["--question-file", str(tmp_path / "q.json"), "--result-file", str(given)]
    eval_gqa.main([*flags, "--scores-file", str(tmp_path / "s.jsonl")])
    assert capsys.readouterr().out == "Samples: 3\nAccuracy: 66.67%\n"
    assert [row["score"] for row in read_rows(tmp_path / "s.jsonl")] == [1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="GQA: 1 questions have no answer, the first is 3"):
        eval_gqa.score(questions, read_rows(given)[:2])


@pytest.mark.parametrize("text", ["B", "B.", "(B)", "(B) on the left", "B, because", "B\nbecause", " B \n"])
def test_mmbench_takes_a_letter_by_itself(text: str) -> None:
    assert eval_mmbench.chosen_letter(text) == "B"


@pytest.mark.parametrize("text", ["A dog is on the left", "Both", "E", "", "the answer is B"])
def test_mmbench_takes_no_word_for_a_letter(text: str) -> None:
    assert eval_mmbench.chosen_letter(text) is None


def test_mmbench_counts_a_question_only_if_all_its_rotations_are_right() -> None:
    rows = [{"index": str(index), "answer": "A"} for index in (5, 1_000_005, 6, 1_000_006)]
    said = {5: "A", 1_000_005: "(A) yes", 6: "A.", 1_000_006: "B"}
    given = [
        {"question_id": index, "text": text, "option_char": ["A", "B"], "round_id": 0} for index, text in said.items()
    ]
    assert [(score.question_id, score.value) for score in eval_mmbench.score(rows, given)] == [("5", 1.0), ("6", 0.0)]
    with pytest.raises(ValueError, match="1 questions have no answer, the first is 1000006"):
        eval_mmbench.score(rows, given[:-1])


def test_mmbench_translates_the_letter_of_a_rotated_round() -> None:
    rows = [{"index": "5", "answer": "B"}]
    given = [{"question_id": 5, "text": "A", "option_char": ["B", "C", "A"], "round_id": 1}]
    assert eval_mmbench.score(rows, given)[0].value == 1.0


def test_mmbench_says_that_test_tables_have_no_answers() -> None:
    given = [{"question_id": 5, "text": "A", "option_char": ["A"], "round_id": 0}]
    with pytest.raises(ValueError, match="test tables are scored by the server alone"):
        eval_mmbench.score([{"index": "5"}], given)


def mme_release(folder: Path) -> Path:
    """Two tasks in the two layouts of the release; one question ends with two spaces before its instruction."""
    count = folder / "count" / "0001.txt"
    ocr = folder / "OCR" / "questions_answers_YN"
    (folder / "count").mkdir(parents=True)
    ocr.mkdir(parents=True)
    count.write_text("Is it one? Please answer yes or no.\tYes\nIs it two?  Please answer yes or no.\tNo\n")
    for name in ("a", "b"):
        (ocr / f"{name}.txt").write_text(
            "Is it x? Please answer yes or no.\tYes\nIs it y? Please answer yes or no.\tNo\n"
        )
    return folder


def test_mme_adds_accuracy_and_pictures_with_both_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """count: 1 of 2, no picture whole: 50 + 0. OCR: 3 of 4, one picture of two whole: 75 + 50. Perception 175."""
    suffix = "\nAnswer the question using a single word or phrase."
    asked = [
        ("count/0001.png", "Is it one?", "Yes"),
        ("count/0001.png", "Is it two?", "Maybe"),
        ("OCR/images/a.jpg", "Is it x? Please answer yes or no.", "yes"),
        ("OCR/images/a.jpg", "Is it y?", "No."),
        ("OCR/b.jpg", "Is it x?", "Yes, it is"),
        ("OCR/b.jpg", "Is it y?", "Yes"),
    ]
    rows = [{"question_id": key, "prompt": text + suffix, "text": said} for key, text, said in asked]
    given = write_jsonl(tmp_path / "a.jsonl", rows)
    data = mme_release(tmp_path / "MME")
    eval_mme.main(["--data-dir", str(data), "--result-file", str(given), "--official-dir", str(tmp_path / "official")])
    printed = capsys.readouterr().out
    assert "Perception ===========\ntotal score: 175.00\n  count: 50.00 (accuracy 50.00, both right 0.00)" in printed
    assert "  OCR: 125.00 (accuracy 75.00, both right 50.00)" in printed
    assert "Cognition ===========\ntotal score: 0.00" in printed
    lines = (tmp_path / "official" / "count.txt").read_text().splitlines()
    assert lines[1] == "0001.txt\tIs it two?  Please answer yes or no.\tNo\tMaybe"
    truths = eval_mme.read_truths(data)
    with pytest.raises(ValueError, match=r"3 questions have no answer|1 questions have no answer"):
        eval_mme.judge(rows[:-1], truths)
    with pytest.raises(ValueError, match="has two answers"):
        eval_mme.judge([*rows, rows[0]], truths)
    with pytest.raises(
        ValueError, match=r"MME has no question 'Is it z\? Please answer yes or no\.' in count/0001\.txt"
    ):
        eval_mme.judge([{**rows[0], "prompt": "Is it z?"}], truths)


@pytest.mark.parametrize(("text", "label"), [("Yes", "yes"), ("no!", "no"), ("Nope", "no"), ("It is", "other")])
def test_mme_reads_the_first_four_characters(text: str, label: str) -> None:
    assert eval_mme.yes_no_other(text) == label


def test_scorers_and_comparisons_start_without_torch() -> None:
    modules = "eval_gqa eval_mmbench eval_mme eval_pope eval_science_qa eval_textvqa evaluate_interleave gpt_review"
    names = ", ".join(f"llava.eval.{name}" for name in [*modules.split(), "submissions", "compare", "science_qa"])
    code = f"import sys, {names}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


def test_an_answer_without_its_keys_is_named(tmp_path: Path) -> None:
    given = write_jsonl(tmp_path / "a.jsonl", [{"question_id": 1, "text": "a"}, {"question_id": 2, "answer": "b"}])
    with pytest.raises(ValueError, match=r"a\.jsonl: line 2 lacks text; it has answer, question_id"):
        read_answers(given)
    with pytest.raises(ValueError, match=r"a\.jsonl: line 1 lacks prompt"):
        eval_mme.main(["--data-dir", str(mme_release(tmp_path / "MME")), "--result-file", str(given)])


def test_a_question_answered_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="question 1 has two answers; was one chunk merged twice"):
        texts_by_id([{"question_id": 1, "text": "a"}, {"question_id": "1", "text": "b"}])
