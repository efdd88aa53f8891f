"""Accuracy of a trained model on held-out scenes, by kind of question, beside what text alone would score.

python -m playground.evaluate --model OUT/stage2 --data OUT/data --to OUT/result.json
"""

import argparse
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from llava.eval.questions import read_jsonl
from llava.inference import Chat, Decoding, Turn
from playground.questions import KINDS, VISUAL_KINDS

BATCH = 64
GREEDY = Decoding(temperature=0.0, max_new_tokens=4)


@dataclass(frozen=True)
class Score:
    """One kind of question. accuracy, prior, error: shares from 0 to 1; error is the standard error of accuracy."""

    kind: str
    questions: int
    accuracy: float
    prior: float
    error: float


class Prior:
    """The best answer without looking: the most frequent one in training for the question's words, else its kind."""

    def __init__(self, conversations: Iterable[Mapping[str, Any]]) -> None:
        by_text: dict[str, Counter[str]] = defaultdict(Counter)
        for record in conversations:
            turns = record["conversations"]
            for human, answer in zip(turns[::2], turns[1::2], strict=True):
                by_text[human["value"].removeprefix("<image>\n")][answer["value"]] += 1
        self.answers = {text: counts.most_common(1)[0][0] for text, counts in by_text.items()}

    def answer(self, text: str) -> str:
        return self.answers.get(text, "")


def load_chat(model: Path) -> Chat:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Chat.load(str(model), template="v1", device=device, torch_dtype="float32")


def answer_all(chat: Chat, lines: Sequence[Mapping[str, Any]], images: Path) -> list[str]:
    """One answer per question line, in order."""
    answers: list[str] = []
    for start in tqdm(range(0, len(lines), BATCH), desc="Answering", mininterval=1.0):
        prompts = []
        for line in lines[start : start + BATCH]:
            with Image.open(images / line["image"]) as picture:
                prompts.append(chat.prompt([Turn(line["text"], (picture.convert("RGB"),))]))
        texts, pictures = [prompt.text for prompt in prompts], [prompt.images for prompt in prompts]
        answers += chat.answer_all(texts, pictures, GREEDY, prompts[0].stop)
    return answers


def score(lines: Sequence[Mapping[str, Any]], answers: Sequence[str], prior: Prior) -> list[Score]:
    """One Score per kind, in the order of KINDS."""
    right, by_prior = defaultdict(list), defaultdict(list)
    for line, answer in zip(lines, answers, strict=True):
        right[line["category"]].append(is_right(line, answer))
        by_prior[line["category"]].append(prior.answer(line["text"]) == line["answer"])
    scores = []
    for kind in (kind for kind in KINDS if kind in right):
        count = len(right[kind])
        accuracy = sum(right[kind]) / count
        error = math.sqrt(accuracy * (1 - accuracy) / count)
        scores.append(Score(kind, count, accuracy, sum(by_prior[kind]) / count, error))
    return scores


def mean(scores: Sequence[Score], kinds: Sequence[str]) -> tuple[float, float, float]:
    """Mean accuracy and prior over kinds, and the standard error of the former."""
    chosen = [item for item in scores if item.kind in kinds]
    error = math.sqrt(sum(item.error**2 for item in chosen)) / len(chosen)
    return sum(s.accuracy for s in chosen) / len(chosen), sum(s.prior for s in chosen) / len(chosen), error


def evaluate(model: Path, data: Path) -> dict[str, Any]:
    """Answers and scores of a checkpoint on `data`'s held-out questions."""
    lines = read_jsonl(data / "heldout.jsonl")
    prior = Prior(json.loads((data / "finetune.json").read_text()))
    answers = answer_all(load_chat(model), lines, data / "images")
    scores = score(lines, answers, prior)
    return {
        "model": str(model),
        "scores": [asdict(item) for item in scores],
        "answers": [{**line, "prediction": answer} for line, answer in zip(lines, answers, strict=True)],
    }


@dataclass(frozen=True)
class Gain:
    """How much more one model gets right than another on the same questions, and the paired standard error."""

    value: float
    error: float


def gains(better: Sequence[Mapping[str, str]], worse: Sequence[Mapping[str, str]]) -> dict[str, Gain]:
    """By kind, from two models' answers to the same questions in the same order."""
    steps: dict[str, list[int]] = defaultdict(list)
    for one, other in zip(better, worse, strict=True):
        assert one["question_id"] == other["question_id"]
        steps[one["category"]].append(is_right(one, one["prediction"]) - is_right(other, other["prediction"]))
    found = {}
    for kind, values in steps.items():
        value = sum(values) / len(values)
        variance = sum((step - value) ** 2 for step in values) / len(values)
        found[kind] = Gain(value, math.sqrt(variance / len(values)))
    return found


def is_right(line: Mapping[str, Any], answer: str) -> bool:
    return bool(answer.strip().lower() == line["answer"])


def mean_gain(by_kind: Mapping[str, Gain], kinds: Sequence[str]) -> Gain:
    chosen = [by_kind[kind] for kind in kinds if kind in by_kind]
    error = math.sqrt(sum(item.error**2 for item in chosen)) / len(chosen)
    return Gain(sum(item.value for item in chosen) / len(chosen), error)


def table(results: Mapping[str, Sequence[Score]], by_kind: Mapping[str, Gain] | None = None) -> str:
    """Percent by kind of question: the prior, then each model with its standard error, and a paired difference."""
    first = next(iter(results.values()))
    names = list(results)
    head = f"{'question':<12}{'asked':>6}{'prior':>8}" + "".join(f"{name:>18}" for name in names)
    head += f"{'difference':>18}" * bool(by_kind)
    rows = [head, "-" * len(head)]
    for place, item in enumerate(first):
        cells = "".join(f"{_percent(results[name][place].accuracy, results[name][place].error):>18}" for name in names)
        cells += f"{_signed(by_kind[item.kind]):>18}" if by_kind else ""
        rows.append(f"{item.kind:<12}{item.questions:>6}{100 * item.prior:>8.1f}{cells}")
    rows.append("-" * len(head))
    for label, kinds in (("visual", VISUAL_KINDS), ("all", KINDS)):
        means = {name: mean(results[name], kinds) for name in names}
        cells = "".join(f"{_percent(means[name][0], means[name][2]):>18}" for name in names)
        cells += f"{_signed(mean_gain(by_kind, kinds)):>18}" if by_kind else ""
        rows.append(f"{label:<12}{'':>6}{100 * means[names[0]][1]:>8.1f}{cells}")
    rows.append(f"visual: mean of {', '.join(VISUAL_KINDS)}. +- is the standard error over questions, not over runs.")
    return "\n".join(rows)


def _signed(gain: Gain) -> str:
    return f"{100 * gain.value:+.1f} +- {100 * gain.error:.1f}"


def _percent(value: float, error: float) -> str:
    return f"{100 * value:.1f} +- {100 * error:.1f}"


def read_scores(path: Path) -> list[Score]:
    return [Score(**item) for item in json.loads(path.read_text())["scores"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="what playground.llava_data wrote")
    parser.add_argument("--to", type=Path, required=True, help="JSON to write")
    options = parser.parse_args()
    result = evaluate(options.model, options.data)
    options.to.parent.mkdir(parents=True, exist_ok=True)
    options.to.write_text(json.dumps(result, indent=1))
    print(table({options.model.name: read_scores(options.to)}))


if __name__ == "__main__":
    main()
