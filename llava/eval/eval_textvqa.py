"""TextVQA accuracy of an answer file, or of every answer file in a folder.

python -m llava.eval.eval_textvqa --annotation-file TextVQA_0.5.1_val.json --result-file answers.jsonl
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.errors import readable_errors
from llava.eval.m4c_evaluator import TextVQAAccuracyEvaluator
from llava.eval.questions import read_json
from llava.eval.scores import PROMPTED_ANSWER, Score, add_scores_argument, read_answers, write_scores


def question_of(prompt: str) -> str:
    """The question inside a prompt: the line before the OCR tokens or the instruction, lower-case."""
    if prompt.startswith("OCR tokens: "):
        match = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        if match is None:
            raise ValueError(f"no question found in {prompt!r}")
        return match.group(1).lower()
    lines = prompt.split("\n")
    if "Reference OCR token: " in prompt and len(lines) == 3:
        return (lines[1] if prompt.startswith("Reference OCR token:") else lines[0]).lower()
    if len(lines) == 2:
        return lines[0].lower()
    raise ValueError(f"no question found in {prompt!r}")


def score(annotations: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]]) -> list[Score]:
    """Soft accuracy of each answer; ids are pictures, so a question is named by both.

    Raises ValueError for an answer that belongs to no annotated question.
    """
    evaluator = TextVQAAccuracyEvaluator()
    truths = {(str(row["image_id"]), row["question"].lower()): row["answers"] for row in annotations}
    scores = []
    for answer in answers:
        image, question = key = (str(answer["question_id"]), question_of(answer["prompt"]))
        if key not in truths:
            raise ValueError(f"no annotation for question {question!r} about picture {image}")
        entry = {"pred_answer": answer["text"], "gt_answers": truths[key]}
        scores.append(Score(f"{image}: {question}", evaluator.eval_pred_list([entry]), image))
    return scores


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotation-file", required=True)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--result-file")
    group.add_argument("--result-dir")
    add_scores_argument(parser)
    args = parser.parse_args(argv)
    if args.result_dir and args.scores_file:
        parser.error("--scores-file belongs to one --result-file")
    annotations = read_json(args.annotation_file)["data"]
    files = [Path(args.result_file)] if args.result_file else sorted(Path(args.result_dir).glob("*.jsonl"))
    for file in files:
        scores = score(annotations, read_answers(file, PROMPTED_ANSWER))
        accuracy = 100 * sum(row.value for row in scores) / len(scores)
        print(f"{file.stem}\nSamples: {len(scores)}\nAccuracy: {accuracy:.2f}%\n")
        if len(scores) != len(annotations):
            print(f"{len(annotations)} questions are annotated: this is not the whole split\n")
        write_scores(scores, args.scores_file)


if __name__ == "__main__":
    with readable_errors():
        main()
