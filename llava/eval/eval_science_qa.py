"""ScienceQA accuracy, over all questions and over those with a picture.

    python -m llava.eval.eval_science_qa --base-dir scienceqa --result-file answers.jsonl \\
        --output-file output.jsonl --output-result result.json
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from llava.eval.answering import read_jsonl

LETTERS = ("A", "B", "C", "D", "E")


def chosen_letter(text: str) -> str | None:
    """A bare letter, `X. ...`, or `The answer is X.`; None where none of them fits."""
    if text in LETTERS:
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    stated = re.findall(r"The answer is ([A-Z])\.", text)
    return stated[0] if len(stated) == 1 else None


def grade(problem: dict[str, Any], text: str) -> dict[str, Any]:
    letter = chosen_letter(text)
    chosen = LETTERS.index(letter) if letter in LETTERS[: len(problem["choices"])] else -1
    return {
        "parsed_ans": letter or "FAILED",
        "ground_truth": LETTERS[problem["answer"]],
        "correct": chosen == problem["answer"],
        "is_multimodal": problem.get("image") is not None,
    }


def evaluate(problems: dict[str, Any], split: list[str], answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracies in percent over the whole split; a question without an answer counts as wrong."""
    texts = {str(row["question_id"]): row["text"].strip() for row in answers}
    graded = {pid: {**grade(problems[pid], texts.get(pid, "")), "answered": pid in texts} for pid in split}
    with_image = [row for row in graded.values() if row["is_multimodal"]]
    return {
        "acc": 100 * sum(row["correct"] for row in graded.values()) / max(1, len(graded)),
        "img_acc": 100 * sum(row["correct"] for row in with_image) / max(1, len(with_image)),
        "count": len(graded),
        "img_count": len(with_image),
        "unanswered": sum(not row["answered"] for row in graded.values()),
        "results": {pid: row["parsed_ans"] for pid, row in graded.items()},
        "graded": graded,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-dir", required=True, help="holds problems.json and pid_splits.json")
    parser.add_argument("--result-file", required=True)
    parser.add_argument("--output-file", required=True)
    parser.add_argument("--output-result", required=True)
    parser.add_argument("--split", default="test")
    args = parser.parse_args(argv)
    base = Path(args.base_dir)
    problems = json.loads((base / "problems.json").read_text())
    split = json.loads((base / "pid_splits.json").read_text())[args.split]
    result = evaluate(problems, split, read_jsonl(args.result_file))
    graded = result.pop("graded")
    with open(args.output_file, "w", encoding="utf-8") as file:
        for pid, row in graded.items():
            file.write(json.dumps({"question_id": pid, **row}) + "\n")
    Path(args.output_result).write_text(json.dumps(result, indent=2))
    print(f"Total: {result['count']}, unanswered: {result['unanswered']}, Accuracy: {result['acc']:.2f}%, IMG-Accuracy: {result['img_acc']:.2f}%")


if __name__ == "__main__":
    main()
