"""POPE scores by category: accuracy, precision, recall, F1 and the share of yes.

python -m llava.eval.eval_pope --annotation-dir coco --question-file llava_pope_test.jsonl --result-file A.jsonl
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import readable_errors
from llava.eval.questions import read_jsonl
from llava.eval.scores import Score, add_scores_argument, read_answers, require_all, texts_by_id, write_scores

Row = dict[str, Any]
PREFIX = "coco_pope_"


def says_yes(text: str) -> bool:
    """No if the first sentence holds the word no or not, else yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


@dataclass(frozen=True)
class Counts:
    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @classmethod
    def of(cls, predictions: Sequence[bool], labels: Sequence[bool]) -> "Counts":
        pairs = list(zip(predictions, labels, strict=True))
        yes, no = (True, False)
        return cls(pairs.count((yes, yes)), pairs.count((yes, no)), pairs.count((no, no)), pairs.count((no, yes)))

    @property
    def total(self) -> int:
        return self.true_positive + self.false_positive + self.true_negative + self.false_negative

    @property
    def accuracy(self) -> float:
        return (self.true_positive + self.true_negative) / self.total if self.total else 0.0

    @property
    def precision(self) -> float:
        said = self.true_positive + self.false_positive
        return self.true_positive / said if said else 0.0

    @property
    def recall(self) -> float:
        real = self.true_positive + self.false_negative
        return self.true_positive / real if real else 0.0

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0

    @property
    def yes_ratio(self) -> float:
        return (self.true_positive + self.false_positive) / self.total if self.total else 0.0


def report(counts: Counts) -> str:
    return (
        "TP\tFP\tTN\tFN\n"
        f"{counts.true_positive}\t{counts.false_positive}\t{counts.true_negative}\t{counts.false_negative}\n"
        f"Accuracy: {counts.accuracy}\nPrecision: {counts.precision}\nRecall: {counts.recall}\n"
        f"F1 score: {counts.f1}\nYes ratio: {counts.yes_ratio}\n"
        f"{counts.f1:.3f}, {counts.accuracy:.3f}, {counts.precision:.3f}, {counts.recall:.3f}, {counts.yes_ratio:.3f}"
    )


def score_category(
    name: str, questions: Sequence[Row], labels: Sequence[Row], texts: dict[str, str]
) -> tuple[Counts, list[Score]]:
    """Labels belong to the category's questions in their order. Raises ValueError where the two do not fit."""
    if len(questions) != len(labels):
        raise ValueError(f"{name}: the question file has {len(questions)} questions, the labels are {len(labels)}")
    require_all([str(question["question_id"]) for question in questions], texts, name)
    predictions, truths, scores = [], [], []
    for question, label in zip(questions, labels, strict=True):
        identity = str(question["question_id"])
        if label.get("image", question.get("image")) != question.get("image"):
            raise ValueError(f"{name}: question {identity} is about {question['image']}, its label {label['image']}")
        predictions.append(says_yes(texts[identity]))
        truths.append(label["label"] != "no")
        scores.append(Score(identity, float(predictions[-1] == truths[-1]), question.get("image")))
    return Counts.of(predictions, truths), scores


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotation-dir", required=True, help="holds coco_pope_{adversarial,popular,random}.json")
    parser.add_argument("--question-file", required=True)
    parser.add_argument("--result-file", required=True)
    add_scores_argument(parser)
    args = parser.parse_args(argv)
    questions = read_jsonl(args.question_file)
    texts = texts_by_id(read_answers(args.result_file))
    files = sorted(Path(args.annotation_dir).glob(f"{PREFIX}*.json"))
    if not files:
        raise ValueError(f"{args.annotation_dir} holds no {PREFIX}*.json")
    f1_scores, all_scores = [], []
    for file in files:
        name = file.stem.removeprefix(PREFIX)
        asked = [question for question in questions if question["category"] == name]
        counts, scores = score_category(name, asked, read_jsonl(file), texts)
        f1_scores.append(counts.f1)
        all_scores += scores
        print(f"Category: {name}, # samples: {counts.total}\n{report(counts)}\n" + "=" * 36)
    print(f"Mean F1 score: {sum(f1_scores) / len(f1_scores)}")
    write_scores(all_scores, args.scores_file)


if __name__ == "__main__":
    with readable_errors():
        main()
