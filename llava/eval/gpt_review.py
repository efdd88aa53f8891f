"""Reviews of two assistants' answers by a judge: the published file formats, with any command as the judge.

The judge is a program of yours: it reads the request on standard input and writes the review to standard output,
its first line the two scores. Which model it asks, and with which key, is its own business.
"""

import argparse
import json
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.questions import read_json, read_jsonl

Row = dict[str, Any]
Judge = Callable[[str], str]
FAILED = [-1.0, -1.0]


def command_judge(command: str) -> Judge:
    def judge(request: str) -> str:
        done = subprocess.run(shlex.split(command), input=request, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the judge {command!r} failed with code {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    return judge


def parse_scores(review: str) -> list[float]:
    """The two numbers of a review's first line, else [-1, -1]."""
    words = review.split("\n")[0].replace(",", " ").split()
    try:
        scores = [float(word) for word in words]
    except ValueError:
        return FAILED
    return scores if len(scores) == 2 else FAILED


def request_text(rule: Mapping[str, str], question: str, answers: Sequence[str], context: Sequence[str]) -> str:
    """What the judge reads. context: blocks that describe the picture; none for questions without one."""
    role = rule["role"]
    parts = [f"[Context]\n{block}\n\n" for block in context]
    parts.append(f"[Question]\n{question}\n\n")
    for number, answer in enumerate(answers, 1):
        parts.append(f"[{role} {number}]\n{answer}\n\n[End of {role} {number}]\n\n")
    return "".join([*parts, f"[System]\n{rule['prompt']}\n\n"])


def picture_context(description: Mapping[str, Any], with_boxes: bool) -> list[str]:
    """Captions, and for the older benchmark the objects with their boxes."""
    captions = description["caption"] if "caption" in description else description["captions"]
    blocks = ["\n".join([captions] if isinstance(captions, str) else captions)]
    if with_boxes:
        blocks.append("\n".join(f"{item['category']}: {item['bbox']}" for item in description["instances"]))
    return blocks


def review_all(
    questions: Sequence[Row],
    answers: tuple[Sequence[Row], Sequence[Row]],
    rules: Mapping[str, Mapping[str, str]],
    output: Path,
    judge: Judge,
    *,
    prefix: str,
    contexts: Mapping[str, Mapping[str, Any]] | None = None,
    with_boxes: bool = False,
) -> None:
    """Appends one review a question to `output`, after those it holds. prefix: of the category in the rule table."""
    output.parent.mkdir(parents=True, exist_ok=True)
    done = len(read_jsonl(output)) if output.exists() else 0
    with open(output, "a", encoding="utf-8") as file:
        for number, (question, first, second) in enumerate(zip(questions, *answers, strict=True), 1):
            category = prefix + question.get("category", "general")
            if category not in rules:
                raise ValueError(f"the rule file has no category {category!r}; it has {', '.join(sorted(rules))}")
            if number <= done:
                continue
            context = picture_context(contexts[question["image"]], with_boxes) if contexts is not None else []
            review = judge(request_text(rules[category], question["text"], [first["text"], second["text"]], context))
            row = {
                "id": number,
                "question_id": question["question_id"],
                "answer1_id": first.get("answer_id", first["question_id"]),
                "answer2_id": second.get("answer_id", second["question_id"]),
                "category": category,
                "content": review,
                "tuple": parse_scores(review),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            if row["tuple"] == FAILED:
                print(f"question {row['question_id']}: no two scores in the review's first line: {review[:80]!r}")


def main(description: str, argv: list[str] | None, *, prefix: str, has_context: bool, with_boxes: bool) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-q", "--question", required=True)
    if has_context:
        parser.add_argument("-c", "--context", required=True, help="JSONL that describes the pictures")
    parser.add_argument("-a", "--answer-list", nargs=2, required=True, metavar=("REFERENCE", "HYPOTHESIS"))
    parser.add_argument("-r", "--rule", required=True, help="JSON: {category: {role, prompt}}")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--judge", required=True, help="command: request on standard input, review on standard output")
    args = parser.parse_args(argv)
    contexts = {row["image"]: row for row in read_jsonl(args.context)} if has_context else None
    review_all(
        read_jsonl(args.question),
        (read_jsonl(args.answer_list[0]), read_jsonl(args.answer_list[1])),
        read_json(args.rule),
        Path(args.output).expanduser(),
        command_judge(args.judge),
        prefix=prefix,
        contexts=contexts,
        with_boxes=with_boxes,
    )
