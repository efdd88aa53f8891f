"""Evaluated runs from disk: which checkpoint, which seed, and the score of every question of every benchmark.

Reads the score files of our scorers, lmms-eval's sample logs, and plain answer files with a file of labels.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.eval.m4c_evaluator import EvalAIAnswerProcessor, TextVQAAccuracyEvaluator
from llava.eval.questions import read_jsonl, require_keys
from llava.eval.scores import Score

SEED = re.compile(r"^(.+?)(?:[-_.]?seed[-_]?|[-_.]s)(\d+)$")
SAMPLES = re.compile(r"_samples_(.+)$")
# Keys of lmms-eval's sample logs that are or hold numbers and no metric.
NO_METRIC = {"doc", "doc_id", "schema_version", "input_tokens", "output_tokens"}
PICTURE_KEYS = ("image_id", "imageId", "image", "image_source", "image_name")

Scores = Mapping[str, Score]


@dataclass(frozen=True)
class Run:
    """benchmarks: {benchmark: {question id: score}}. seed: 0 where names do not tell."""

    name: str
    seed: int
    path: Path
    benchmarks: Mapping[str, Scores]


@dataclass(frozen=True)
class Reading:
    """How files become scores. metrics: which to take from lmms-eval's logs with several. labels: by question id."""

    metrics: Sequence[str] = ()
    labels: Mapping[str, Any] | None = None


NO_OPTIONS = Reading()


class Unscored(ValueError):
    """A log of lmms-eval that tells of no question whether its answer is right."""


def read_labels(path: str | Path) -> dict[str, Any]:
    """{question_id, answer} lines; a list of ten answers is scored softly, as VQA does, any other list by any match."""
    labels = {}
    for number, row in enumerate(read_jsonl(path), 1):
        require_keys(row, ("question_id", "answer"), f"{path}: line {number}")
        labels[str(row["question_id"])] = row
    return labels


def grade(text: str, answer: str | Sequence[str]) -> float:
    """Both normalized as the VQA challenge does."""
    normalize = EvalAIAnswerProcessor()
    if isinstance(answer, str):
        return float(normalize(text) == normalize(answer))
    if len(answer) == 10:
        return TextVQAAccuracyEvaluator().eval_pred_list([{"pred_answer": text, "gt_answers": answer}])
    return float(normalize(text) in {normalize(one) for one in answer})


def _picture(row: Mapping[str, Any]) -> str | None:
    return next((str(row[key]) for key in PICTURE_KEYS if isinstance(row.get(key), str | int)), None)


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Of a line of lmms-eval's logs: plain numbers, and dicts that hold theirs as `score`."""
    values = {key: value.get("score") if isinstance(value, dict) else value for key, value in row.items()}
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and key not in NO_METRIC and not key.endswith("_tokens")
    }


def _logged_scores(rows: Sequence[Mapping[str, Any]], reading: Reading, path: Path) -> list[Score]:
    """Of one of lmms-eval's logs. Lines without the metric, such as those of MME's other half, are left out."""
    values = [_metrics(row) for row in rows]
    names = sorted({name for found in values for name in found})
    # lmms-eval writes 0 for answers that only a server can score.
    if not names or ("submission" in rows[0] and path.stem.endswith("_test")):
        raise Unscored(f"{path} has no scores of single questions: its answers are for a server or a judge")
    metric = next((name for name in reading.metrics if name in names), names[0])
    if metric not in reading.metrics and len(names) > 1:
        raise ValueError(f"{path} has the metrics {', '.join(names)}; name one of them with --metric")
    return [
        Score(str(row["doc_id"]), found[metric], _picture(row.get("doc") or {}))
        for row, found in zip(rows, values, strict=True)
        if metric in found
    ]


def _score(row: dict[str, Any], reading: Reading, path: Path) -> Score:
    if "score" in row and "question_id" in row:
        return Score(str(row["question_id"]), float(row["score"]), row.get("cluster"))
    require_keys(row, ("question_id", "text"), str(path))
    if reading.labels is None:
        raise ValueError(f"{path} holds answers without scores; give --labels, or a scorer's --scores-file instead")
    identity = str(row["question_id"])
    if identity not in reading.labels:
        raise ValueError(f"{path}: the labels lack question {identity}")
    label = reading.labels[identity]
    return Score(identity, grade(row["text"], label["answer"]), _picture(label))


def read_scores(path: Path, reading: Reading) -> dict[str, Score]:
    """Raises ValueError for a question that occurs twice, or a file that holds no scores."""
    rows = read_jsonl(path)
    is_log = bool(rows) and "doc_id" in rows[0]
    found = _logged_scores(rows, reading, path) if is_log else [_score(row, reading, path) for row in rows]
    scores: dict[str, Score] = {}
    for score in found:
        if score.question_id in scores:
            raise ValueError(f"{path}: question {score.question_id} occurs twice")
        scores[score.question_id] = score
    if not scores:
        raise ValueError(f"{path} holds no scores")
    return scores


def benchmark_of(path: Path) -> str | None:
    """The task in the name of one of lmms-eval's sample logs."""
    logged = SAMPLES.search(path.stem)
    return logged.group(1) if logged else None


def name_and_seed(path: Path) -> tuple[str, int]:
    """The last part of a path, and the number at its end after `seed` or `s`; 0 if there is none."""
    name = path.name if path.is_dir() else path.stem
    numbered = SEED.match(name)
    return (numbered.group(1), int(numbered.group(2))) if numbered else (name, 0)


def read_folder(folder: Path, reading: Reading) -> dict[str, Scores]:
    """Every .jsonl below a folder, named by its task or its own name; logs without scores are named and left out."""
    benchmarks: dict[str, Scores] = {}
    for file in sorted(folder.rglob("*.jsonl")):
        benchmark = benchmark_of(file) or file.stem
        if benchmark in benchmarks:
            raise ValueError(f"{folder} holds {benchmark} twice, the second in {file}; name a folder with one run")
        try:
            benchmarks[benchmark] = read_scores(file, reading)
        except Unscored as error:
            print(f"left out: {error}", file=sys.stderr)
    if not benchmarks:
        raise ValueError(f"{folder} holds no .jsonl files of scores")
    return benchmarks


def read_run(argument: str, reading: Reading = NO_OPTIONS) -> Run:
    """argument: PATH or NAME=PATH, a file or a folder of files, one for each benchmark; PATH may have a `=` too."""
    given, path = "", Path(argument).expanduser()
    if not path.exists() and "=" in argument:
        given, _, location = argument.partition("=")
        path = Path(location).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{argument} does not exist")
    name, seed = name_and_seed(path)
    if path.is_dir():
        return Run(given or name, seed, path, read_folder(path, reading))
    return Run(given or name, seed, path, {benchmark_of(path) or "accuracy": read_scores(path, reading)})
