"""Files for servers and official scorers, written by the scripts as they are called."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from openpyxl import load_workbook

from llava.eval.science_qa import exchange, sample
from tests.eval.conftest import read_rows, write_jsonl

SCRIPTS = Path(__file__).parents[2] / "scripts"
PROBLEM = {
    "question": "Which  one?",
    "hint": "",
    "choices": ["cat", "dog"],
    "answer": 1,
    "lecture": "Dogs bark.",
    "solution": "It barks.",
    "image": None,
}


def run(monkeypatch: pytest.MonkeyPatch, script: str, *flags: object) -> None:
    monkeypatch.setenv("LLAVA_DEBUG", "1")  # mistakes come through as what they are
    monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
    runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")


def answers(path: Path, **texts: str) -> Path:
    rows = [{"question_id": int(key[1:]), "prompt": "p", "text": text} for key, text in texts.items()]
    return write_jsonl(path, rows)


def test_vqav2_asks_for_every_question_of_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", [{"question_id": number} for number in (3, 1, 2)])
    answers(tmp_path / "answers" / "dev" / "mine" / "merge.jsonl", q1="The Cat.", q3="two")
    run(monkeypatch, "convert_vqav2_for_submission", "--dir", tmp_path, "--ckpt", "mine", "--split", "dev")
    assert json.loads((tmp_path / "answers_upload" / "dev" / "mine.json").read_text()) == [
        {"question_id": 3, "answer": "2"},
        {"question_id": 1, "answer": "cat"},
        {"question_id": 2, "answer": ""},
    ]


def test_gqa_predictions_are_lower_case_without_the_last_period(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = answers(tmp_path / "a.jsonl", q1="To the Left.", q2="2.5")
    run(monkeypatch, "convert_gqa_for_eval", "--src", given, "--dst", tmp_path / "new" / "p.json")
    assert json.loads((tmp_path / "new" / "p.json").read_text()) == [
        {"questionId": 1, "prediction": "to the left"},
        {"questionId": 2, "prediction": "2.5"},
    ]


def test_vizwiz_is_written_by_picture_and_needs_every_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = write_jsonl(tmp_path / "t.jsonl", [{"question_id": n, "image": f"{n}.jpg"} for n in (1, 2)])
    given = answers(tmp_path / "a.jsonl", q2="A bottle.", q1="Unanswerable")
    flags = ("--annotation-file", listed, "--result-file", given, "--result-upload-file", tmp_path / "u.json")
    run(monkeypatch, "convert_vizwiz_for_submission", *flags)
    assert json.loads((tmp_path / "u.json").read_text()) == [
        {"image": "1.jpg", "answer": "unanswerable"},
        {"image": "2.jpg", "answer": "bottle"},
    ]
    answers(given, q1="x")
    with pytest.raises(ValueError, match="VizWiz: 1 questions have no answer, the first is 2"):
        run(monkeypatch, "convert_vizwiz_for_submission", *flags)


def test_mmvet_ids_are_prefixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = answers(tmp_path / "a.jsonl", q0="A long answer.", q7="B")
    run(monkeypatch, "convert_mmvet_for_eval", "--src", given, "--dst", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == {"v1_0": "A long answer.", "v1_7": "B"}


def test_answers_that_occur_twice_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = answers(tmp_path / "a.jsonl", q1="x")
    write_jsonl(given, read_rows(given) * 2)
    for script in ("convert_gqa_for_eval", "convert_mmvet_for_eval"):
        with pytest.raises(ValueError, match="question 1 has two answers"):
            run(monkeypatch, script, "--src", given, "--dst", tmp_path / "r.json")


def test_the_mmbench_sheet_has_the_prediction_in_its_published_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = [
        "index",
        "question",
        "hint",
        "A",
        "B",
        "C",
        "D",
        "answer",
        "category",
        "image",
        "source",
        "l2-category",
        "comment",
        "split",
    ]
    values = ["12", "Which?", "h", "cat", "dog", "", "", "B", "c", "aW1n", "s", "l", "k", "dev"]
    second = ["13", *values[1:]]
    table = tmp_path / "dev.tsv"
    table.write_text("\n".join("\t".join(row) for row in (columns, values, second)) + "\n")
    given = answers(tmp_path / "answers" / "mine.jsonl", q12="B")
    later = {"question_id": 12, "text": "A", "round_id": 1}  # of --all-rounds: other letters for the same options
    write_jsonl(given, [{**row, "round_id": 0} for row in read_rows(given)] + [later])
    flags = ("--annotation-file", table, "--result-dir", tmp_path / "answers", "--upload-dir", tmp_path / "up")
    run(monkeypatch, "convert_mmbench_for_submission", *flags, "--experiment", "mine")
    sheet = load_workbook(tmp_path / "up" / "mine.xlsx").active
    rows = [[cell or "" for cell in row] for row in sheet.iter_rows(values_only=True)]
    assert rows[0] == ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]
    assert rows[1] == [12, "Which?", "cat", "dog", "", "", "B", "B", "dev"]
    assert rows[2][6] == ""


def test_seed_counts_the_bare_letter_by_type_and_medium(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scene: A right, B wrong (a sentence): 50 %. Action (video): unanswered: 0 %. Total 1 of 3."""
    questions = [
        {"question_id": "1", "answer": "A", "question_type_id": 1, "data_type": "image", "data_id": "x"},
        {"question_id": "2", "answer": "B", "question_type_id": 1, "data_type": "image", "data_id": "x"},
        {"question_id": "v_3", "answer": "C", "question_type_id": 2, "data_type": "video", "data_id": "y"},
    ]
    annotation = {"question_type": {"Scene": 1, "Action": 2}, "questions": questions}
    (tmp_path / "SEED.json").write_text(json.dumps(annotation))
    given = answers(tmp_path / "a.jsonl", q1="A", q2="B. The dog")
    flags = ("--annotation-file", tmp_path / "SEED.json", "--result-file", given, "--result-upload-file")
    run(monkeypatch, "convert_seed_for_submission", *flags, tmp_path / "u.jsonl", "--scores-file", tmp_path / "s.jsonl")
    assert capsys.readouterr().out.splitlines() == [
        "Scene: 50.00%", "Action: 0.00%", "Total accuracy: 33.33%", "Image accuracy: 50.00%", "Video accuracy: 0.00%",
    ]  # fmt: skip
    assert read_rows(tmp_path / "u.jsonl")[1:] == [
        {"question_id": "2", "prediction": "B. The dog"},
        {"question_id": "v_3", "prediction": ""},
    ]
    assert [row["cluster"] for row in read_rows(tmp_path / "s.jsonl")] == ["x", "x", "y"]


def test_mme_answers_become_the_official_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = tmp_path / "MME_Benchmark_release_version" / "count"
    release.mkdir(parents=True)
    (release / "1.txt").write_text("Is it one? Please answer yes or no.\tYes\n")
    prompt = "Is it one?\nAnswer the question using a single word or phrase."
    write_jsonl(tmp_path / "answers" / "mine.jsonl", [{"question_id": "count/1.jpg", "prompt": prompt, "text": "Yes"}])
    run(monkeypatch, "convert_answer_to_mme", "--experiment", "mine", "--dir", tmp_path)
    written = (tmp_path / "eval_tool" / "answers" / "mine" / "count.txt").read_text()
    assert written == "1.txt\tIs it one? Please answer yes or no.\tYes\tYes\n"


@pytest.mark.parametrize(
    ("prompt_format", "question", "answer"),
    [
        ("CQM-A", "Context: N/A\nQuestion: Which one?\nOptions: (A) cat (B) dog", "The answer is B."),
        ("QCM-LEA", "Which one?\nContext: N/A\nOptions: (A) cat (B) dog", "Dogs bark. It barks. The answer is B."),
        ("QCM-ALE", None, "The answer is B. BECAUSE: Dogs bark. It barks."),
        ("QCM-AL", None, "The answer is B. BECAUSE: It barks."),
        ("QCM-AE", None, "The answer is B. BECAUSE: Dogs bark."),
        ("QCM-LEPA", None, "LECTURE: Dogs bark.\nSOLUTION: It barks.\n###\nANSWER: B."),
        ("QCML-A", "Which one?\nContext: N/A\nOptions: (A) cat (B) dog\nBECAUSE: Dogs bark.", None),
        ("QCLEM-A", "Which one?\nContext: N/A\nBECAUSE: Dogs bark. It barks.\nOptions: (A) cat (B) dog", None),
    ],
)
def test_science_formats_are_the_published_ones(prompt_format: str, question: str | None, answer: str | None) -> None:
    asked, answered = exchange(PROBLEM, prompt_format)
    assert asked == (question or asked)
    assert answered == (answer or answered)


def test_science_reasons_that_are_missing_leave_no_because() -> None:
    assert exchange({**PROBLEM, "lecture": ""}, "QCML-AE") == (
        "Which one?\nContext: N/A\nOptions: (A) cat (B) dog",
        "The answer is B.",
    )
    with pytest.raises(ValueError, match="no prompt format 'XYZ'"):
        exchange(PROBLEM, "XYZ")


def test_science_problems_become_samples_and_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = {"1": PROBLEM, "2": {**PROBLEM, "image": "image.png"}, "3": PROBLEM}
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["1", "2"]}))
    flags = ("--base-dir", tmp_path, "--split", "test", "--prompt-format", "CQM-A")
    run(monkeypatch, "convert_sqa_to_llava", "convert_to_llava", *flags)
    samples = json.loads((tmp_path / "llava_test_CQM-A.json").read_text())
    assert samples == [sample("1", PROBLEM, "CQM-A"), sample("2", problems["2"], "CQM-A")]
    assert samples[1]["image"] == "2/image.png"
    assert samples[1]["conversations"][0]["value"].endswith("(B) dog\n<image>")
    assert "image" not in samples[0]
    run(monkeypatch, "convert_sqa_to_llava", "convert_to_jsonl", *flags)
    lines = read_rows(tmp_path / "scienceqa_test_CQM-A.jsonl")
    assert [sorted(line) for line in lines] == [
        ["id", "instruction", "output"],
        ["id", "image", "instruction", "output"],
    ]
    with pytest.raises(ValueError, match=r"no split 'dev' in .*there are test"):
        run(monkeypatch, "convert_sqa_to_llava", "convert_to_llava", "--base-dir", tmp_path, "--split", "dev")
