"""Answers ScienceQA in LLaVA's training format (a JSON array of samples, some without a picture).

    python -m llava.eval.model_vqa_science --model-path DIR --image-folder DIR --question-file llava_test_CQM-A.json \\
        --answers-file A.jsonl --single-pred-prompt --temperature 0
"""

import argparse
import json
from pathlib import Path

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.answering import Question, add_common_arguments, images_in, run_generator

LETTER_SUFFIX = "\nAnswer with the option's letter from the given choices directly."


def read_questions(args: argparse.Namespace) -> list[Question]:
    questions = []
    for row in json.loads(Path(args.question_file).expanduser().read_text(encoding="utf-8")):
        text = row["conversations"][0]["value"].replace(DEFAULT_IMAGE_TOKEN, "").strip()
        suffix = LETTER_SUFFIX if args.single_pred_prompt else ""
        opener, count = images_in(args.image_folder, row.get("image"))
        recorded = DEFAULT_IMAGE_TOKEN + "\n" + text if count else text
        questions.append(Question(row["id"], recorded + suffix, text + suffix, opener, count))
    return questions


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, max_new_tokens=1024, conv_mode="llava_v0")
    parser.set_defaults(question_file="tables/question.json")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter alone")
    args = parser.parse_args(argv)
    run_generator(args, read_questions(args))


if __name__ == "__main__":
    main()
