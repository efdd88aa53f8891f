"""TextVQA accuracy of an answer file, or of every answer file in a folder.

    python -m llava.eval.eval_textvqa --annotation-file TextVQA_0.5.1_val.json --result-file answers.jsonl
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from llava.eval.answering import read_jsonl
from llava.eval.m4c_evaluator import TextVQAAccuracyEvaluator


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


def score(annotations: list[dict[str, Any]], answers: list[dict[str, Any]]) -> float:
    """Percent. Raises ValueError for an answer that belongs to no annotated question."""
    truths = {(row["image_id"], row["question"].lower()): row["answers"] for row in annotations}
    pairs = []
    for answer in answers:
        key = (answer["question_id"], question_of(answer["prompt"]))
        if key not in truths:
            raise ValueError(f"no annotation for question {key}")
        pairs.append({"pred_answer": answer["text"], "gt_answers": truths[key]})
    return 100.0 * TextVQAAccuracyEvaluator().eval_pred_list(pairs)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotation-file", required=True)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--result-file")
    group.add_argument("--result-dir")
    args = parser.parse_args(argv)
    annotations = json.loads(Path(args.annotation_file).read_text(encoding="utf-8"))["data"]
    files = [Path(args.result_file)] if args.result_file else sorted(Path(args.result_dir).glob("*.jsonl"))
    for file in files:
        answers = read_jsonl(file)
        print(file.stem)
        print(f"Samples: {len(answers)}\nAccuracy: {score(annotations, answers):.2f}%\n")


if __name__ == "__main__":
    main()
