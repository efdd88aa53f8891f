"""Reviews of two assistants' answers by a judge: the published file formats, with any command as the judge.

The judge is a program of yours: it reads the request on standard input and writes the review to standard output,
its first line the two scores. Which model it asks, and with which key, is its own business.
"""

import argparse
import json
import os
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from llava.eval.questions import read_json, read_jsonl
from llava.eval.scores import read_answers

Row = dict[str, Any]
Judge = Callable[[str], str]
FAILED = [-1.0, -1.0]
IDS = ("question_id", "answer1_id", "answer2_id")


def command_judge(command: str, max_tokens: int) -> Judge:
    """The command finds `max_tokens`, of a review, in its environment as MAX_TOKENS. Raises ValueError if it fails."""
    environment = {**os.environ, "MAX_TOKENS": str(max_tokens)}

    def judge(request: str) -> str:
        done = subprocess.run(
            shlex.split(command), input=request, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ValueError(f"the judge {command!r} failed with code {done.returncode}: {done.stderr.strip()}")
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


def request_text(rule: Mapping[str, str], question: str, answers: Sequence[str], context: str | None) -> str:
    """What the judge reads. context: describes the picture; None for a question without one."""
    role = rule["role"]
    parts = [] if context is None else [f"[Context]\n{context}\n\n"]
    parts.append(f"[Question]\n{question}\n\n")
    for number, answer in enumerate(answers, 1):
        parts.append(f"[{role} {number}]\n{answer}\n\n[End of {role} {number}]\n\n")
    return "".join([*parts, f"[System]\n{rule['prompt']}\n\n"])


def picture_context(description: Mapping[str, Any], with_boxes: bool) -> str:
    """Captions, and for the older benchmark the objects with their boxes."""
    captions = description["caption"] if "caption" in description else description["captions"]
    context = captions if isinstance(captions, str) else "\n".join(captions)
    if with_boxes:
        context += "\n\n" + "\n".join(f"{item['category']}: {item['bbox']}" for item in description["instances"])
    return context


def check_order(questions: Sequence[Row], answers: Sequence[Row], which: str) -> None:
    """Raises ValueError unless the answers are to these questions, in their order."""
    asked, answered = ([str(row["question_id"]) for row in rows] for rows in (questions, answers))
    for number, (question, answer) in enumerate(zip_longest(asked, answered, fillvalue="missing"), 1):
        if question != answer:
            raise ValueError(
                f"line {number}: the question's id is {question}, the {which} answer's {answer}; "
                "all three files must have the same questions in the same order"
            )


def reviews_there(output: Path, wanted: Sequence[Row]) -> list[bytes]:
    """The lines of `output` without one that a kill has torn. Raises ValueError unless they begin the wanted ones."""
    lines = output.read_bytes().splitlines(keepends=True) if output.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    for number, (line, row) in enumerate(zip_longest(lines, wanted[: len(lines)]), 1):
        try:
            is_wanted = [json.loads(line)[key] for key in IDS] == [row[key] for key in IDS]
        except (ValueError, KeyError, TypeError):
            is_wanted = False
        if not is_wanted:
            raise ValueError(
                f"{output}:{number} is no review of this question and these answers; "
                "name another --output, or remove this one"
            )
    return lines


def requests_of(
    questions: Sequence[Row],
    answers: tuple[Sequence[Row], Sequence[Row]],
    rules: Mapping[str, Mapping[str, str]],
    *,
    prefix: str,
    contexts: Mapping[str, Mapping[str, Any]] | None = None,
    with_boxes: bool = False,
) -> list[tuple[Row, str]]:
    """What is written of each question before its review, and what the judge reads.

    prefix: of the category in the rule table. Questions without pictures (contexts: None) of a category that the table
    lacks are judged by its `default`.
    """
    for rows, which in zip(answers, ("reference", "hypothesis"), strict=True):
        check_order(questions, rows, which)
    requests = []
    for number, (question, first, second) in enumerate(zip(questions, *answers, strict=True), 1):
        category = prefix + question.get("category", "general")
        rule = rules.get(category, rules.get("default") if contexts is None else None)
        if rule is None:
            raise ValueError(f"the rule file has no category {category!r}; it has {', '.join(sorted(rules))}")
        context = None if contexts is None else picture_context(contexts[question["image"]], with_boxes)
        row = {
            "id": number,
            "question_id": question["question_id"],
            "answer1_id": first.get("answer_id", first["question_id"]),
            "answer2_id": second.get("answer_id", second["question_id"]),
            "category": category,
        }
        requests.append((row, request_text(rule, question["text"], [first["text"], second["text"]], context)))
    return requests


def review_all(requests: Sequence[tuple[Row, str]], output: Path, judge: Judge) -> None:
    """Appends one review a request to `output`, after those it holds."""
    kept = reviews_there(output, [row for row, _ in requests])
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "ab") as file:
        file.truncate(sum(map(len, kept)))
        for row, request in requests[len(kept) :]:
            review = judge(request)
            reviewed = {**row, "content": review, "tuple": parse_scores(review)}
            file.write(json.dumps(reviewed, ensure_ascii=False).encode() + b"\n")
            file.flush()
            if reviewed["tuple"] == FAILED:
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
    parser.add_argument("--max-tokens", type=int, default=1024, help="of a review: the judge's MAX_TOKENS")
    args = parser.parse_args(argv)
    contexts = {row["image"]: row for row in read_jsonl(args.context)} if has_context else None
    reference, hypothesis = (read_answers(path) for path in args.answer_list)
    requests = requests_of(
        read_jsonl(args.question),
        (reference, hypothesis),
        read_json(args.rule),
        prefix=prefix,
        contexts=contexts,
        with_boxes=with_boxes,
    )
    review_all(requests, Path(args.output).expanduser(), command_judge(args.judge, args.max_tokens))
