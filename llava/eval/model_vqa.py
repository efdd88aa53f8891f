"""Answers a JSONL of {question_id, image, text}, or LLaVA-NeXT's interleaved JSON array; the file's content decides.

    python -m llava.eval.model_vqa --model-path DIR --image-folder DIR --question-file Q.jsonl --answers-file A.jsonl
"""

import argparse
import json
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.answering import Question, add_common_arguments, images_in, questions_by_id, read_jsonl, run_generator


def plain_questions(rows: list[dict[str, Any]], path: str, folder: str) -> list[Question]:
    questions = []
    for identity, row in questions_by_id(rows, path):
        opener, count = images_in(folder, row.get("image"))
        questions.append(Question(identity, row["text"], row["text"], opener, count))
    return questions


def interleaved_questions(rows: list[dict[str, Any]], folder: str, extra_prompt: str) -> list[Question]:
    """{sample_id, image: [...], conversations, metadata: {dataset, question_type}}; the first turn is asked."""
    questions = []
    for row in rows:
        turns = row["conversations"]
        text = extra_prompt + turns[0]["value"].replace(DEFAULT_IMAGE_TOKEN, "").strip()
        opener, count = images_in(folder, row.get("image"))
        extra = {
            "sample_id": row["sample_id"],
            "dataset": row["metadata"]["dataset"],
            "question_type": row["metadata"]["question_type"],
            "gt_response": turns[1]["value"],
        }
        questions.append(Question(row["sample_id"], text, text, opener, count, extra))
    return questions


def read_questions(args: argparse.Namespace) -> list[Question]:
    path = Path(args.question_file).expanduser()
    with open(path, encoding="utf-8") as file:
        is_array = file.read(64).lstrip().startswith("[")
    if is_array:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return interleaved_questions(rows[: args.test_size], args.image_folder, args.extra_prompt)
    return plain_questions(read_jsonl(path), str(path), args.image_folder)[: args.test_size]


def main(argv: list[str] | None = None, max_new_tokens: int = 1024) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, max_new_tokens)
    parser.add_argument("--extra-prompt", default="", help="put before every question of an interleaved file")
    parser.add_argument("--test_size", type=int, default=None, help="only the first so many questions")
    args = parser.parse_args(argv)
    run_generator(args, read_questions(args))


if __name__ == "__main__":
    main()
