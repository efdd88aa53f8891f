"""Answers a JSONL of {question_id, image, text}, or LLaVA-NeXT's interleaved JSON array; the file's content decides.

python -m llava.eval.model_vqa --model-path DIR --image-folder DIR --question-file Q.jsonl --answers-file A.jsonl
"""

import argparse
from pathlib import Path
from typing import Any

from llava.eval.answer_log import VQA, AnswerFormat, short_uuid
from llava.eval.answering import add_common_arguments, run_generator, run_program
from llava.eval.questions import ImageFiles, Question, read_json, read_jsonl, require_keys


def interleaved_line(question: Question, text: str, model_id: str) -> dict[str, Any]:
    return {
        "dataset": question.extra["dataset"],
        "sample_id": question.id,
        "prompt": question.text,
        "pred_response": text,
        "gt_response": question.extra["gt_response"],
        "shortuuid": short_uuid(),
        "model_id": model_id,
        "question_type": question.extra["question_type"],
    }


INTERLEAVED = AnswerFormat(interleaved_line, ("dataset", "sample_id", "prompt"))


def plain_questions(rows: list[dict[str, Any]], path: str, folder: str) -> list[Question]:
    questions = []
    for number, row in enumerate(rows, 1):
        require_keys(row, ("question_id", "text"), f"{path}: question {number}")
        images = ImageFiles.below(folder, row.get("image"))
        questions.append(Question(row["question_id"], row["text"], row["text"], images))
    return questions


def interleaved_questions(rows: list[dict[str, Any]], path: str, folder: str, extra_prompt: str) -> list[Question]:
    """{sample_id, image: [...], conversations, metadata: {dataset, question_type}}; the first turn is asked.

    Pictures stay where the turn has `<image>`.
    """
    questions = []
    for number, row in enumerate(rows, 1):
        require_keys(row, ("sample_id", "conversations", "metadata"), f"{path}: sample {number}")
        require_keys(row["metadata"], ("dataset", "question_type"), f"{path}: metadata of sample {number}")
        asked, answered = row["conversations"][:2]
        text = extra_prompt + asked["value"]
        extra = {**row["metadata"], "gt_response": answered["value"]}
        images = ImageFiles.below(folder, row.get("image"))
        questions.append(Question(row["sample_id"], text, text, images, extra))
    return questions


def read_questions(args: argparse.Namespace) -> tuple[list[Question], AnswerFormat]:
    path = Path(args.question_file).expanduser()
    with open(path, encoding="utf-8") as file:
        is_array = file.read(64).lstrip().startswith("[")
    if is_array:
        rows = read_json(path)[: args.test_size]
        return interleaved_questions(rows, str(path), args.image_folder, args.extra_prompt), INTERLEAVED
    if args.extra_prompt:
        raise ValueError(f"--extra-prompt belongs to interleaved files, a JSON array; {path} is a JSONL of questions")
    return plain_questions(read_jsonl(path)[: args.test_size], str(path), args.image_folder), VQA


def read_arguments(argv: list[str] | None, max_new_tokens: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, max_new_tokens)
    parser.add_argument("--extra-prompt", default="", help="put before every question of an interleaved file")
    parser.add_argument("--test_size", type=int, default=None, help="only the first so many questions")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = read_arguments(argv, max_new_tokens=1024)
    run_generator(args, *read_questions(args))


if __name__ == "__main__":
    run_program(main)
