"""Answers a JSONL of {question_id, text} with a language model alone, LLaVA's or any other.

python -m llava.eval.model_qa --model-name DIR --question-file Q.jsonl --answers-file A.jsonl
"""

import argparse

from llava.eval.answering import add_common_arguments, run_generator, run_program
from llava.eval.questions import Question, read_jsonl, require_keys


def read_questions(path: str) -> list[Question]:
    questions = []
    for number, row in enumerate(read_jsonl(path), 1):
        require_keys(row, ("question_id", "text"), f"{path}: question {number}")
        questions.append(Question(row["question_id"], row["text"], row["text"]))
    return questions


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, 1024, conv_mode="v1", model_flags=("--model-name", "--model-path"))
    parser.set_defaults(temperature=0.7)
    args = parser.parse_args(argv)
    run_generator(args, read_questions(args.question_file))


if __name__ == "__main__":
    run_program(main)
