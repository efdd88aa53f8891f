"""Questions, answers and reviews of several models in one JSON file, for a page that shows them side by side.

    python -m llava.eval.generate_webpage_data_from_table --question table/question.jsonl \\
        --answer vicuna=table/answer/answer_vicuna-13b.jsonl ours=answers.jsonl \\
        --review vicuna=table/review/review_vicuna-13b_ours.jsonl --output webpage/data.json

A review compares its model with `ours`. The file is {"questions": [{id, category, question, answers, evaluations,
scores}], "models": [...]}, as LLaVA's page reads it.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llava.errors import readable_errors
from llava.eval.questions import read_jsonl
from llava.eval.scores import write_json
from llava.eval.summarize_gpt_review import scores_of

SCORE_LINE = re.compile(r"\d+(\.\d+)?[, ]+\d+")


def by_question(path: str) -> dict[Any, dict[str, Any]]:
    return {row["question_id"]: row for row in read_jsonl(path)}


def named(pairs: Sequence[str]) -> dict[str, dict[Any, dict[str, Any]]]:
    """`NAME=FILE` arguments as rows by question. Raises ValueError for another form."""
    split = [pair.partition("=") for pair in pairs]
    if wrong := [name for name, sign, path in split if not (name and sign and path)]:
        raise ValueError(f"{wrong[0]!r} is not NAME=FILE")
    return {name: by_question(path) for name, _, path in split}


def shown(review: str) -> str:
    """A review without its line of scores, the assistants in bold."""
    first, _, rest = review.strip().partition("\n")
    text = rest if SCORE_LINE.match(first) else review.strip()
    return re.sub(r"Assistant ([12])", r"**Assistant \1**", text)


def page_data(
    questions: Mapping[Any, dict[str, Any]],
    answers: Mapping[str, Mapping[Any, dict[str, Any]]],
    reviews: Mapping[str, Mapping[Any, dict[str, Any]]],
) -> dict[str, Any]:
    """Raises KeyError for a question that a file lacks."""
    records = [
        {
            "id": key,
            "category": question["category"],
            "question": question["text"],
            "answers": {name: rows[key]["text"] for name, rows in answers.items()},
            "evaluations": {name: shown(rows[key]["content"]) for name, rows in reviews.items()},
            "scores": {name: scores_of(rows[key]) for name, rows in reviews.items()},
        }
        for key, question in sorted(questions.items())
    ]
    return {"questions": records, "models": list(reviews)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--question", default="table/question.jsonl")
    parser.add_argument("--answer", nargs="+", required=True, metavar="NAME=FILE", help="one of them `ours`")
    parser.add_argument("--review", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--output", default="webpage/data.json")
    args = parser.parse_args(argv)
    write_json(page_data(by_question(args.question), named(args.answer), named(args.review)), args.output)


if __name__ == "__main__":
    with readable_errors():
        main()
