"""POPE scores by category: accuracy, precision, recall, F1 and the share of yes.

    python -m llava.eval.eval_pope --annotation-dir coco --question-file llava_pope_test.jsonl --result-file answers.jsonl
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from llava.eval.answering import read_jsonl


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
    def of(cls, predictions: list[bool], labels: list[bool]) -> "Counts":
        pairs = list(zip(predictions, labels, strict=True))
        return cls(pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, False)), pairs.count((False, True)))

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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotation-dir", required=True, help="holds coco_pope_{adversarial,popular,random}.json")
    parser.add_argument("--question-file", required=True)
    parser.add_argument("--result-file", required=True)
    args = parser.parse_args(argv)
    category = {row["question_id"]: row["category"] for row in read_jsonl(args.question_file)}
    answers = read_jsonl(args.result_file)
    scores = []
    for file in sorted(Path(args.annotation_dir).glob("coco_pope_*.json")):
        name = file.stem.removeprefix("coco_pope_")
        predictions = [says_yes(row["text"]) for row in answers if category[row["question_id"]] == name]
        labels = [row["label"] != "no" for row in read_jsonl(file)]
        if len(predictions) != len(labels):
            raise SystemExit(f"{name}: {len(predictions)} answers for {len(labels)} questions; the result file is not complete")
        counts = Counts.of(predictions, labels)
        scores.append(counts.f1)
        print(f"Category: {name}, # samples: {len(predictions)}\n{report(counts)}\n" + "=" * 36)
    if scores:
        print(f"Mean F1 score: {sum(scores) / len(scores)}")


if __name__ == "__main__":
    main()
