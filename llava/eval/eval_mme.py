"""MME scores: for each subtask accuracy plus the share of pictures with both questions right, in percent, summed.

python -m llava.eval.eval_mme --data-dir MME_Benchmark_release_version --result-file answers.jsonl
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from llava.errors import readable_errors
from llava.eval.scores import PROMPTED_ANSWER, Score, add_scores_argument, read_answers, write_scores

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
INSTRUCTION = "Answer the question using a single word or phrase."
YES_OR_NO = "Please answer yes or no."


class Judged(NamedTuple):
    """file: the picture's text file, `0001.txt`. prediction: yes, no or other."""

    task: str
    file: str
    question: str
    truth: str
    text: str
    prediction: str


@dataclass(frozen=True)
class TaskScore:
    accuracy: float
    accuracy_plus: float

    @property
    def total(self) -> float:
        return self.accuracy + self.accuracy_plus


def read_truths(directory: str | Path) -> dict[tuple[str, str, str], str]:
    """{(task, file, question): Yes or No} of the release, whose tasks lie in one of two layouts."""
    truths = {}
    for task in sorted(path for path in Path(directory).iterdir() if path.is_dir()):
        nested = task / "questions_answers_YN"
        for file in sorted((nested if nested.is_dir() else task).glob("*.txt")):
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                parts = line.strip().split("\t")
                if len(parts) != 2:
                    raise ValueError(f"{file}:{number} is not question, tab, answer: {line!r}")
                truths[(task.name, file.name, parts[0])] = parts[1]
    if not truths:
        raise ValueError(f"{directory} holds no MME questions (TASK/*.txt or TASK/questions_answers_YN/*.txt)")
    return truths


def question_of(prompt: str, known: Mapping[tuple[str, str, str], str], task: str, file: str) -> str:
    """The release's own wording of a prompt, which lost its instruction and perhaps one of two spaces."""
    bare = prompt.replace(INSTRUCTION, "").strip()
    candidates = [bare] if YES_OR_NO in bare else [f"{bare} {YES_OR_NO}", f"{bare}  {YES_OR_NO}"]
    for question in candidates:
        if (task, file, question) in known:
            return question
    raise ValueError(f"MME has no question {candidates[0]!r} in {task}/{file}")


def yes_no_other(text: str) -> str:
    """The whole answer, else its first four characters."""
    lowered = text.lower()
    if lowered in ("yes", "no"):
        return lowered
    start = lowered[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def judge(answers: Sequence[dict[str, Any]], truths: Mapping[tuple[str, str, str], str]) -> list[Judged]:
    """Raises ValueError for an answer to an unknown question, a second answer, or a question without one."""
    judged = {}
    for answer in answers:
        path = PurePosixPath(answer["question_id"])
        task, file = path.parts[0], path.stem + ".txt"
        question = question_of(answer["prompt"], truths, task, file)
        key = (task, file, question)
        if key in judged:
            raise ValueError(f"{task}/{file}: {question!r} has two answers; was one chunk merged twice?")
        judged[key] = Judged(*key, truths[key], answer["text"], yes_no_other(answer["text"]))
    tasks = {task for task, _, _ in judged}
    missing = [key for key in truths if key[0] in tasks and key not in judged]
    if missing:
        raise ValueError(f"{len(missing)} questions have no answer, the first is {missing[0]}")
    return list(judged.values())


def score_task(judged: Sequence[Judged]) -> TaskScore:
    rights: dict[str, list[bool]] = {}
    for row in judged:
        rights.setdefault(row.file, []).append(row.prediction == row.truth.lower())
    hits = [hit for pair in rights.values() for hit in pair]
    return TaskScore(
        100 * sum(hits) / len(hits),
        100 * sum(all(pair) for pair in rights.values()) / len(rights),
    )


def write_official(judged: Sequence[Judged], directory: str | Path) -> None:
    """`TASK.txt` files with picture, question, truth and answer in columns, as the official calculation reads them."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    for task in sorted({row.task for row in judged}):
        rows = [row for row in judged if row.task == task]
        lines = ["\t".join((row.file, row.question, row.truth, " ".join(row.text.split()))) for row in rows]
        (Path(directory) / f"{task}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="MME_Benchmark_release_version")
    parser.add_argument("--result-file", required=True)
    parser.add_argument("--official-dir", default=None, help="where the official calculation's input goes")
    add_scores_argument(parser)
    args = parser.parse_args(argv)
    judged = judge(read_answers(args.result_file, PROMPTED_ANSWER), read_truths(args.data_dir))
    if args.official_dir:
        write_official(judged, args.official_dir)
    for title, tasks in (("Perception", PERCEPTION), ("Cognition", COGNITION)):
        scores = {task: score_task(rows) for task in tasks if (rows := [row for row in judged if row.task == task])}
        print(f"=========== {title} ===========\ntotal score: {sum(score.total for score in scores.values()):.2f}")
        for task, score in scores.items():
            print(f"  {task}: {score.total:.2f} (accuracy {score.accuracy:.2f}, both right {score.accuracy_plus:.2f})")
        missing = [task for task in tasks if task not in scores]
        if missing:
            print(f"  without answers: {', '.join(missing)}")
    write_scores(
        [
            Score(f"{row.task}/{row.file}: {row.question}", float(row.prediction == row.truth.lower()), row.file)
            for row in judged
        ],
        args.scores_file,
    )


if __name__ == "__main__":
    with readable_errors():
        main()
