"""ScienceQA with a second model and a judge, the GPT-3.5 baseline, and the data of the page that shows reviews."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from llava.eval import (
    eval_science_qa_gpt4,
    eval_science_qa_gpt4_requery,
    generate_webpage_data_from_table,
    qa_baseline_gpt35,
)
from tests.eval.conftest import read_rows, write_jsonl

# Right is always B. Ours, the other model's, the judge's.
ANSWERS = {
    "1": ("The answer is B.", "The answer is A.", "The answer is B."),
    "2": ("The answer is A.", "The answer is B.", "The answer is B."),
    "3": ("The answer is B.", "I cannot say.", "Hm."),
    "4": ("The answer is A.", "none", "The answer is A."),
}


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    problem = {"choices": ["x", "y"], "answer": 1, "image": None}
    (tmp_path / "problems.json").write_text(json.dumps(dict.fromkeys(ANSWERS, problem)))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": list(ANSWERS)}))
    write_jsonl(tmp_path / "ours.jsonl", [{"question_id": pid, "text": texts[0]} for pid, texts in ANSWERS.items()])
    write_jsonl(tmp_path / "third.jsonl", [{"question_id": pid, "text": texts[2]} for pid, texts in ANSWERS.items()])
    (tmp_path / "other.json").write_text(json.dumps({"outputs": {pid: texts[1] for pid, texts in ANSWERS.items()}}))
    files = {"--base-dir": "", "--our-result": "ours.jsonl", "--gpt4-result": "other.json"}
    return [part for flag, name in files.items() for part in (flag, str(tmp_path / name))]


def test_the_other_models_answer_counts_where_it_gives_one(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    eval_science_qa_gpt4.main(flags)
    assert capsys.readouterr().out.splitlines() == [
        "Total: 4, Correct: 2, Accuracy: 50.00%",
        "Total: 4, Correct (upper): 3, Accuracy: 75.00%",
        "Total: 4, GPT-4 NO-ANS: 2, Percentage: 50.00%",
    ]


def test_a_judge_who_has_seen_both_has_the_last_word(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--requery-result", str(tmp_path / "third.jsonl"), "--output-result", str(tmp_path / "result.json")]
    eval_science_qa_gpt4_requery.main([*flags, *files])
    printed = capsys.readouterr().out
    for line in ("Our-Correct: 2", "GPT-4-Correct: 1", "OursVisual-Correct: 2", "Requery-Correct: 3", "upper: 3"):
        assert line in printed
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["acc"], result["correct"], result["count"]) == (75.0, 3, 4)
    assert result["results"] == {"1": 1, "2": 1, "3": 1, "4": 0}


class Server(BaseHTTPRequestHandler):
    """Answers each question with itself in capitals; the first time it is busy."""

    is_busy = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if Server.is_busy:
            Server.is_busy = False
            self.send_error(503)
            return
        text = body["messages"][-1]["content"].upper()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": text}}]}).encode())

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    service = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{service.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr(qa_baseline_gpt35, "PAUSE_SECONDS", 0.0)
    yield
    service.shutdown()


def test_the_baseline_tries_again_and_writes_answers_in_order(server: None, tmp_path: Path) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", [{"question_id": n, "text": f"why {n}"} for n in (2, 1)])
    qa_baseline_gpt35.main(["-q", str(questions), "-o", str(tmp_path / "a.jsonl")])
    rows = read_rows(tmp_path / "a.jsonl")
    assert [(row["question_id"], row["text"]) for row in rows] == [(1, "WHY 1"), (2, "WHY 2")]
    assert set(rows[0]) == {"answer_id", "question_id", "model_id", "text"}


def test_the_page_gets_reviews_without_their_scores(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question_id": 1, "category": "generic", "text": "Why?"}])
    for name in ("vicuna", "ours"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"question_id": 1, "text": f"{name} says"}])
    review = {"question_id": 1, "content": "8, 9.5\nAssistant 2 is better.", "tuple": [8.0, 9.5]}
    write_jsonl(tmp_path / "review.jsonl", [review])
    pairs = [f"{name}={tmp_path / name}.jsonl" for name in ("vicuna", "ours")]
    output = tmp_path / "webpage" / "data.json"
    arguments = ["--question", str(tmp_path / "q.jsonl"), "--answer", *pairs, "--output", str(output)]
    generate_webpage_data_from_table.main([*arguments, "--review", f"vicuna={tmp_path / 'review.jsonl'}"])
    assert json.loads(output.read_text()) == {
        "questions": [
            {
                "id": 1,
                "category": "generic",
                "question": "Why?",
                "answers": {"vicuna": "vicuna says", "ours": "ours says"},
                "evaluations": {"vicuna": "**Assistant 2** is better."},
                "scores": {"vicuna": [8.0, 9.5]},
            }
        ],
        "models": ["vicuna"],
    }
