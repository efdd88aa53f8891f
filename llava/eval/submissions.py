"""Answer files to the formats that benchmark servers and official scorers read. `scripts/convert_*.py` call these."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.answering import read_jsonl
from llava.eval.m4c_evaluator import EvalAIAnswerProcessor

Row = dict[str, Any]
MMBENCH_DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")


def vqav2(questions: Sequence[Row], answers: Sequence[Row]) -> list[Row]:
    """Every question of the test split; those that were not answered get an empty string."""
    normalize = EvalAIAnswerProcessor()
    texts = {row["question_id"]: normalize(row["text"]) for row in answers}
    return [{"question_id": row["question_id"], "answer": texts.get(row["question_id"], "")} for row in questions]


def gqa(answers: Sequence[Row]) -> list[Row]:
    return [{"questionId": row["question_id"], "prediction": row["text"].rstrip(".").lower()} for row in answers]


def vizwiz(annotations: Sequence[Row], answers: Sequence[Row]) -> list[Row]:
    """Raises ValueError naming a picture without an answer."""
    normalize = EvalAIAnswerProcessor()
    texts = {str(row["question_id"]): row["text"] for row in answers}
    rows = []
    for annotation in annotations:
        identity = str(annotation["question_id"])
        if identity not in texts:
            raise ValueError(f"question {identity} of the annotation file has no answer")
        rows.append({"image": annotation["image"], "answer": normalize(texts[identity])})
    return rows


def mmvet(answers: Sequence[Row]) -> dict[str, str]:
    return {f"v1_{row['question_id']}": row["text"] for row in answers}


def seed(annotation: Mapping[str, Any], answers: Sequence[Row]) -> tuple[list[Row], dict[str, float]]:
    """Submission lines, and accuracy in percent: total, image, video, and by question type."""
    types = {number: name for name, number in annotation["question_type"].items()}
    texts = {str(row["question_id"]): row["text"] for row in answers}
    hits: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    lines = []
    for question in annotation["questions"]:
        text = texts.get(str(question["question_id"]), "")
        correct = text.strip()[:1] == question["answer"]
        for group in ("total", question["data_type"], types[question["question_type_id"]]):
            hits[group] += correct
            totals[group] += 1
        lines.append({"question_id": question["question_id"], "prediction": text})
    return lines, {group: 100 * hits[group] / totals[group] for group in totals}


def mmbench_sheet(tsv: str | Path, answers: Sequence[Row], target: str | Path) -> None:
    """The annotation table as .xlsx without its bulky columns, with `prediction` as its sixth column."""
    try:
        from openpyxl import Workbook
    except ImportError as error:
        raise ImportError("writing .xlsx needs openpyxl: pip install 'move-kd[eval]'") from error
    csv.field_size_limit(sys.maxsize)
    with open(tsv, encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    texts = {int(row["question_id"]): row["text"] for row in answers}
    columns = [name for name in table[0] if name not in MMBENCH_DROPPED]
    columns.insert(6, "prediction")
    book = Workbook()
    sheet = book.active
    sheet.append(columns)
    for row in table:
        index = int(row["index"])
        filled = {**row, "index": index, "prediction": texts.get(index, "")}
        sheet.append([filled[name] for name in columns])
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    book.save(target)


def read_answers(path: str | Path) -> list[Row]:
    rows = read_jsonl(path)
    if not rows:
        raise ValueError(f"{path} holds no answers")
    return rows


def write_json(rows: Any, target: str | Path) -> None:
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(json.dumps(rows), encoding="utf-8")
