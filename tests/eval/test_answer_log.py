"""Answer files that are continued: torn lines, foreign files, and answers of other runs."""

import json
from pathlib import Path

import pytest

from llava.eval.answer_log import VQA, AnswerLog
from llava.eval.questions import Question

SETTINGS = {"model_path": "a", "temperature": 0.0}
QUESTIONS = [Question(index, f"text {index}", "") for index in range(3)]


def answer(path: Path, *questions: Question) -> None:
    with AnswerLog(path, VQA, SETTINGS) as log:
        for question in questions:
            log.write(question, "yes", "model")


def open_questions(path: Path) -> list[int]:
    with AnswerLog(path, VQA, SETTINGS) as log:
        return [question.id for question in QUESTIONS if not log.take(question)]


def test_answered_questions_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    answer(path, QUESTIONS[0], QUESTIONS[2])
    assert open_questions(path) == [1]


@pytest.mark.parametrize("cut", [1, 2, 20, 60])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "answers.jsonl"
    answer(path, *QUESTIONS)
    path.write_bytes(path.read_bytes()[:-cut])
    left = open_questions(path)
    assert left == ([] if cut == 1 else [2])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["question_id"] for row in rows] == [0, 1, 2][: 3 - len(left)]
    assert path.read_bytes().endswith(b"\n")


def test_a_broken_line_in_the_middle_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answer(path, *QUESTIONS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"question_id": 1, "te\n' + lines[2])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"answers\.jsonl:2 is no answer with question_id, prompt"):
        open_questions(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"\x89PNG\r\n", b"some text", b'{"a": 1}\n', b"[1]"])
def test_a_file_of_something_else_is_not_touched(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="name another --answers-file"):
        open_questions(path)
    assert path.read_bytes() == content


def test_answers_of_another_run_are_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answer(path, QUESTIONS[0])
    with pytest.raises(ValueError, match=r"holds 1 answers of another run \(temperature was 0\.0 and is 0\.2\)"):
        AnswerLog(path, VQA, {**SETTINGS, "temperature": 0.2})
    path.write_text("")
    with AnswerLog(path, VQA, {**SETTINGS, "temperature": 0.2}):
        pass


def test_answers_without_a_note_are_nobodys(tmp_path: Path) -> None:
    """Such as those that LLaVA's own generators wrote."""
    path = tmp_path / "answers.jsonl"
    answer(path, QUESTIONS[0])
    path.with_name("answers.jsonl.run.json").unlink()
    with pytest.raises(ValueError, match=r"holds 1 answers, but there is no answers\.jsonl\.run\.json .* remove this"):
        open_questions(path)
    assert not path.with_name("answers.jsonl.run.json").exists()


def test_settings_and_surroundings_are_noted_beside_the_answers(tmp_path: Path) -> None:
    with AnswerLog(tmp_path / "a.jsonl", VQA, SETTINGS, {"versions": {"torch": "2"}}):
        pass
    noted = json.loads((tmp_path / "a.jsonl.run.json").read_text())
    assert noted == {"settings": SETTINGS, "versions": {"torch": "2"}}
