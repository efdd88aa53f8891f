"""ScienceQA accuracy, over all questions and over those with a picture.

    python -m llava.eval.eval_science_qa --base-dir scienceqa --result-file answers.jsonl \\
        --output-file output.json --output-result result.json
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.errors import readable_errors
from llava.eval.science_qa import read_problems
from llava.eval.scores import (
    PROMPTED_ANSWER,
    Score,
    add_scores_argument,
    read_answers,
    texts_by_id,
    write_json,
    write_scores,
)

LETTERS = ("A", "B", "C", "D", "E")
# The last period of the pattern stands for any character, as in the published scorer.
STATED = re.compile(r"The answer is ([A-Z]).")


def chosen_letter(text: str) -> str | None:
    """A bare letter, `X. ...`, or `The answer is X.`; None where none of them fits."""
    if text in LETTERS:
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    stated = STATED.findall(text)
    return stated[0] if len(stated) == 1 else None


def grade(identity: str, problem: dict[str, Any], text: str | None, prompt: str) -> dict[str, Any]:
    """text: None for a question without an answer, which counts as wrong."""
    letter = chosen_letter(text or "")
    chosen = LETTERS.index(letter) if letter in LETTERS[: len(problem["choices"])] else -1
    return {
        "question_id": identity,
        "parsed_ans": letter or "FAILED",
        "ground_truth": LETTERS[problem["answer"]],
        "question": prompt,
        "pred": "FAILED" if text is None else text,
        "is_multimodal": problem["image"] is not None,
        "chosen": chosen,
        "is_correct": chosen == problem["answer"],
    }


def percent(graded: Sequence[dict[str, Any]]) -> float:
    return 100 * sum(row["is_correct"] for row in graded) / len(graded) if graded else 0.0


def evaluate(problems: dict[str, Any], answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One graded row for each problem."""
    texts = texts_by_id(answers)
    prompts = {str(row["question_id"]): row["prompt"] for row in answers}
    return [grade(pid, problem, texts.get(pid), prompts.get(pid, "Unknown")) for pid, problem in problems.items()]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-dir", required=True, help="holds problems.json and pid_splits.json")
    parser.add_argument("--result-file", required=True)
    parser.add_argument("--output-file", required=True, help="JSON of the questions answered right and wrong")
    parser.add_argument("--output-result", required=True, help="JSON of the accuracy and every choice")
    parser.add_argument("--split", default="test")
    add_scores_argument(parser)
    args = parser.parse_args(argv)
    graded = evaluate(read_problems(Path(args.base_dir), args.split), read_answers(args.result_file, PROMPTED_ANSWER))
    right = [row for row in graded if row["is_correct"]]
    write_json({"correct": right, "incorrect": [row for row in graded if not row["is_correct"]]}, args.output_file)
    result = {
        "acc": percent(graded),
        "correct": len(right),
        "count": len(graded),
        "results": {row["question_id"]: row["chosen"] for row in graded},
        "outputs": {row["question_id"]: row["pred"] for row in graded},
    }
    write_json(result, args.output_result)
    image_accuracy = percent([row for row in graded if row["is_multimodal"]])
    print(
        f"Total: {len(graded)}, Correct: {len(right)}, Accuracy: {percent(graded):.2f}%, "
        f"IMG-Accuracy: {image_accuracy:.2f}%"
    )
    unanswered = sum(row["question"] == "Unknown" for row in graded)
    if unanswered:
        print(f"{unanswered} questions have no answer and count as wrong")
    write_scores([Score(row["question_id"], float(row["is_correct"])) for row in graded], args.scores_file)


if __name__ == "__main__":
    with readable_errors():
        main()
