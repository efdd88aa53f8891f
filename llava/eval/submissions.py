"""Answer files to the formats that benchmark servers and official scorers read. `scripts/convert_*.py` call these."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.m4c_evaluator import EvalAIAnswerProcessor
from llava.eval.mmbench_table import read_rows
from llava.eval.scores import Score, require_all, texts_by_id

Row = dict[str, Any]
MMBENCH_DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")


def vqav2(questions: Sequence[Row], answers: Sequence[Row]) -> list[Row]:
    """Every question of the test split; those that were not answered get an empty string."""
    normalize = EvalAIAnswerProcessor()
    texts = texts_by_id(answers)
    answered = {identity: normalize(text) for identity, text in texts.items()}
    return [
        {"question_id": row["question_id"], "answer": answered.get(str(row["question_id"]), "")} for row in questions
    ]


def gqa(answers: Sequence[Row]) -> list[Row]:
    texts_by_id(answers)
    return [{"questionId": row["question_id"], "prediction": row["text"].rstrip(".").lower()} for row in answers]


def vizwiz(annotations: Sequence[Row], answers: Sequence[Row]) -> list[Row]:
    """Raises ValueError naming a question without an answer."""
    normalize = EvalAIAnswerProcessor()
    texts = texts_by_id(answers)
    require_all([str(row["question_id"]) for row in annotations], texts, "VizWiz")
    return [{"image": row["image"], "answer": normalize(texts[str(row["question_id"])])} for row in annotations]


def mmvet(answers: Sequence[Row]) -> dict[str, str]:
    texts_by_id(answers)
    return {f"v1_{row['question_id']}": row["text"] for row in answers}


def seed(annotation: Mapping[str, Any], answers: Sequence[Row]) -> tuple[list[Row], list[Score], dict[str, float]]:
    """Submission lines, scores, and accuracy in percent: by question type, then total, image and video.

    Only the bare letter counts as right. A question without an answer is wrong and goes into the file empty.
    """
    types = {number: name for name, number in annotation["question_type"].items()}
    texts = texts_by_id(answers)
    groups: dict[str, list[float]] = {name: [] for name in (*types.values(), "total", "image", "video")}
    lines, scores = [], []
    for question in annotation["questions"]:
        identity = str(question["question_id"])
        value = float(texts.get(identity) == question["answer"])
        for group in (types[question["question_type_id"]], "total", question["data_type"]):
            groups[group].append(value)
        scores.append(Score(identity, value, str(question["data_id"]) if "data_id" in question else None))
        lines.append({"question_id": question["question_id"], "prediction": texts.get(identity, "")})
    return lines, scores, {name: 100 * sum(hits) / len(hits) for name, hits in groups.items() if hits}


def mmbench_sheet(tsv: str | Path, answers: Sequence[Row], target: str | Path) -> None:
    """The annotation table as .xlsx without its bulky columns, with `prediction` in front of the seventh.

    Of `--all-rounds` answers it takes the first round, whose options stand as they do in the table.
    """
    try:
        from openpyxl import Workbook
    except ImportError as error:
        raise ImportError("writing .xlsx needs openpyxl: pip install 'move-kd[eval]'") from error
    table = read_rows(tsv)
    texts = texts_by_id([row for row in answers if not row.get("round_id")])
    columns = [name for name in table[0] if name not in MMBENCH_DROPPED]
    columns.insert(6, "prediction")
    book = Workbook()
    sheet = book.active
    sheet.append(columns)
    for row in table:
        index = int(row["index"])
        filled = {**row, "index": index, "prediction": texts.get(str(index), "")}
        sheet.append([filled[name] for name in columns])
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    book.save(target)
