"""What every scorer of `llava.eval` shares: answers by question, and the per-question scores that `compare` reads."""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llava.eval.questions import read_jsonl, require_keys

Row = dict[str, Any]
ANSWER = ("question_id", "text")
PROMPTED_ANSWER = (*ANSWER, "prompt")


class Score(NamedTuple):
    """value: 0 to 1. cluster: what questions share, a picture as a rule; None where that is not known."""

    question_id: str
    value: float
    cluster: str | None = None


def read_answers(path: str | Path, keys: Sequence[str] = ANSWER) -> list[Row]:
    """Raises ValueError for a file without answers, or a line that lacks one of `keys`."""
    rows = read_jsonl(path)
    if not rows:
        raise ValueError(f"{path} holds no answers")
    for number, row in enumerate(rows, 1):
        require_keys(row, keys, f"{path}: line {number}")
    return rows


def texts_by_id(answers: Sequence[Row]) -> dict[str, str]:
    """Stripped answers by question id. Raises ValueError for a question that is answered twice."""
    texts: dict[str, str] = {}
    for row in answers:
        identity = str(row["question_id"])
        if identity in texts:
            raise ValueError(f"question {identity} has two answers; was one chunk merged twice?")
        texts[identity] = row["text"].strip()
    return texts


def require_all(wanted: Iterable[str], texts: dict[str, str], what: str) -> None:
    """Raises ValueError that names a question of `what` without an answer."""
    missing = [identity for identity in wanted if identity not in texts]
    if missing:
        raise ValueError(f"{what}: {len(missing)} questions have no answer, the first is {missing[0]}")


def add_scores_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scores-file", default=None, help="where the score of every question goes, for compare.py")


def write_scores(scores: Sequence[Score], path: str | Path | None) -> None:
    """One line {question_id, score, cluster} for each question; no path, no file."""
    if path is None:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for score in scores:
            row = {"question_id": score.question_id, "score": score.value, "cluster": score.cluster}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_json(rows: Any, target: str | Path) -> None:
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
