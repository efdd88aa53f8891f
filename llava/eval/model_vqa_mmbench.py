"""Answers MMBench (TSV with base64 pictures): one round, or every rotation of the options with --all-rounds.

    python -m llava.eval.model_vqa_mmbench --model-path DIR --question-file mmbench_dev_20230712.tsv \\
        --answers-file A.jsonl --single-pred-prompt --temperature 0
"""

import argparse
from dataclasses import dataclass

from PIL import Image

from llava.eval.answer_log import AnswerFormat, vqa_line
from llava.eval.answering import add_common_arguments, run_generator, run_program
from llava.eval.mmbench_table import LETTERS, present, read_rows
from llava.eval.questions import Question
from llava.mm_utils import load_image_from_base64

SUFFIX = {
    "en": "\nAnswer with the option's letter from the given choices directly.",
    "cn": "\n请直接回答选项字母。",
}
ROUNDS = AnswerFormat(vqa_line, ("question_id", "round_id"))


@dataclass(frozen=True)
class Base64Image:
    encoded: str

    def __call__(self) -> list[Image.Image]:
        try:
            return [load_image_from_base64(self.encoded).convert("RGB")]
        except (OSError, ValueError) as error:
            raise ValueError(f"the picture in its row cannot be read: {error}") from error


def rounds_of(row: dict[str, str], all_rounds: bool) -> list[list[tuple[str, str]]]:
    """Each round: (option's original letter, its text), rotated by one more place."""
    options = []
    for letter in LETTERS:
        if not present(row.get(letter)):
            break
        options.append((letter, row[letter]))
    count = len(options) if all_rounds else 1
    return [options[shift:] + options[:shift] for shift in range(count)]


def read_questions(args: argparse.Namespace) -> list[Question]:
    questions = []
    for row in read_rows(args.question_file):
        hint = row["hint"] + "\n" if present(row.get("hint")) else ""
        for round_id, options in enumerate(rounds_of(row, args.all_rounds)):
            shown = "".join(f"\n{letter}. {text}" for letter, (_, text) in zip(LETTERS, options, strict=False))
            text = hint + row["question"] + shown
            message = text + (SUFFIX[args.lang] if args.single_pred_prompt else "")
            extra = {
                "round_id": round_id,
                "options": [text for _, text in options],
                "option_char": [letter for letter, _ in options],
            }
            questions.append(Question(int(row["index"]), text, message, Base64Image(row["image"]), extra))
    return questions


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, max_new_tokens=1024)
    parser.add_argument("--all-rounds", action="store_true")
    parser.add_argument("--single-pred-prompt", action="store_true")
    parser.add_argument("--lang", choices=sorted(SUFFIX), default="en")
    args = parser.parse_args(argv)
    run_generator(args, read_questions(args), ROUNDS)


if __name__ == "__main__":
    run_program(main)
