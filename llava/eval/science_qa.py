"""ScienceQA problems to LLaVA's samples. A format such as CQM-A says what is shown and what is answered.

Before the dash, in order: Q question, C context, M options, L lecture, E explanation. After it: A the answer, L and E
its reasons, or LEPA: reasons, then `ANSWER:`.
"""

import re
from pathlib import Path
from typing import Any

from llava.eval.questions import read_json

LETTERS = "ABCDE"
FORMAT = re.compile(r"^([QCMLE]+)-(A|AL|AE|ALE|AEL|LA|EA|LEA|ELA|LEPA)$")

Problem = dict[str, Any]


def read_problems(base: Path, split: str) -> dict[str, Problem]:
    """The problems of one split, in its order. Raises ValueError for a split that there is not."""
    problems, splits = read_json(base / "problems.json"), read_json(base / "pid_splits.json")
    if split not in splits:
        raise ValueError(f"no split {split!r} in {base / 'pid_splits.json'}; there are {', '.join(splits)}")
    return {pid: problems[pid] for pid in splits[split]}


def _reasons(problem: Problem, letters: str) -> str:
    return " ".join(problem["lecture" if letter == "L" else "solution"] for letter in letters)


def question_text(problem: Problem, shown: str) -> str:
    """shown: the part of a format before the dash."""
    lines = {
        "Q": f"Question: {problem['question']}",
        "C": f"Context: {problem['hint'].strip() or 'N/A'}",
        "M": "Options: "
        + " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem["choices"], strict=False)),
    }
    groups = re.findall(r"[LE]+|[QCM]", shown)
    text = "\n".join(lines[group] if group in lines else f"BECAUSE: {_reasons(problem, group)}" for group in groups)
    return _tidy(text)


def answer_text(problem: Problem, answered: str) -> str:
    """answered: the part of a format after the dash."""
    letter = LETTERS[problem["answer"]]
    if answered == "LEPA":
        reasons = (("LECTURE", problem["lecture"]), ("SOLUTION", problem["solution"]))
        text = "".join(f"{title}: {reason}\n" for title, reason in reasons if reason.strip())
        return _tidy(f"{text}###\nANSWER: {letter}.")
    stated = f"The answer is {letter}."
    if answered == "A":
        return _tidy(f"Answer: {stated}")
    if answered.endswith("A"):
        return _tidy(f"Answer: {_reasons(problem, answered[:-1])} {stated}")
    # Published files have the two single reasons swapped: AL gives the solution, AE the lecture.
    reasons_of = {"AL": "E", "AE": "L"}.get(answered, answered[1:])
    return _tidy(f"Answer: {stated} BECAUSE: {_reasons(problem, reasons_of)}")


def _tidy(text: str) -> str:
    tidied = text.replace("  ", " ").strip()
    return tidied.replace("BECAUSE:", "").strip() if tidied.endswith("BECAUSE:") else tidied


def exchange(problem: Problem, prompt_format: str) -> tuple[str, str]:
    """Question and answer as they stand in a sample. Raises ValueError for a format that does not exist."""
    found = FORMAT.match(prompt_format)
    if not found:
        raise ValueError(f"no prompt format {prompt_format!r}; write it as CQM-A, QCM-LEA or QCM-LEPA")
    question, answer = question_text(problem, found.group(1)), answer_text(problem, found.group(2))
    if question.startswith("Question: "):
        question = question.replace("Question: ", "")
    if answer.startswith("Answer: "):
        answer = answer.replace("Answer: ", "")
    return question, answer


def sample(identity: str, problem: Problem, prompt_format: str) -> dict[str, Any]:
    """A sample as training and `llava.eval.model_vqa_science` read it."""
    question, answer = exchange(problem, prompt_format)
    picture = {} if problem["image"] is None else {"image": f"{identity}/{problem['image']}"}
    turns = [
        {"from": "human", "value": f"{question}\n<image>" if picture else question},
        {"from": "gpt", "value": answer},
    ]
    return {"id": identity, **picture, "conversations": turns}


def instruction(identity: str, problem: Problem, prompt_format: str) -> dict[str, Any]:
    """The same as one flat line."""
    full = sample(identity, problem, prompt_format)
    question, answer = (turn["value"] for turn in full.pop("conversations"))
    return {**full, "instruction": question, "output": answer}
