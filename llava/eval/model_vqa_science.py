"""Answers ScienceQA in LLaVA's training format (a JSON array of samples, some without a picture).

    python -m llava.eval.model_vqa_science --model-path DIR --image-folder DIR --question-file llava_test_CQM-A.json \\
        --answers-file A.jsonl --single-pred-prompt --temperature 0
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.answering import add_common_arguments, run_generator, run_program
from llava.eval.questions import ImageFiles, Question, read_json, require_keys
from llava.inference import Chat, Decoding

LETTER_SUFFIX = "\nAnswer with the option's letter from the given choices directly."


class PromptedAnswer(Chat):
    """Lets the model reason first, then asks it for the answer to its own reasoning."""

    def answer_all(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[Image.Image]],
        decoding: Decoding,
        stop: str | None = None,
    ) -> list[str]:
        reasons = super().answer_all(prompts, images, decoding, stop)
        asked = [f"{prompt}{reason} ###\nANSWER:" for prompt, reason in zip(prompts, reasons, strict=True)]
        answers = super().answer_all(asked, images, replace(decoding, max_new_tokens=64), stop)
        return [f"{reason}\n The answer is {answer}" for reason, answer in zip(reasons, answers, strict=True)]


def read_questions(args: argparse.Namespace) -> list[Question]:
    path = Path(args.question_file).expanduser()
    suffix = LETTER_SUFFIX if args.single_pred_prompt else ""
    questions = []
    for number, row in enumerate(read_json(path), 1):
        require_keys(row, ("id", "conversations"), f"{path}: sample {number}")
        text = row["conversations"][0]["value"].replace(DEFAULT_IMAGE_TOKEN, "").strip()
        images = ImageFiles.below(args.image_folder, row.get("image"))
        recorded = DEFAULT_IMAGE_TOKEN + "\n" + text if images.paths else text
        questions.append(Question(row["id"], recorded + suffix, text + suffix, images))
    return questions


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, max_new_tokens=1024, conv_mode="llava_v0")
    parser.set_defaults(question_file="tables/question.json")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter alone")
    parser.add_argument("--answer-prompter", action="store_true", help="let the model reason, then ask for its answer")
    args = parser.parse_args(argv)
    run_generator(args, read_questions(args), chat_class=PromptedAnswer if args.answer_prompter else Chat)


if __name__ == "__main__":
    run_program(main)
