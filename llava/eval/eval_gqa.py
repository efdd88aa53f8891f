"""GQA accuracy: the share of answers that equal the annotation, as in the official scorer.

python -m llava.eval.eval_gqa --question-file testdev_balanced_questions.json --result-file answers.jsonl
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from llava.errors import readable_errors
from llava.eval.questions import read_json
from llava.eval.scores import Score, add_scores_argument, read_answers, require_all, texts_by_id, write_scores


def score(questions: Mapping[str, Any], answers: Sequence[dict[str, Any]]) -> list[Score]:
    """questions: the official file, {id: {answer, imageId, ...}}. Raises ValueError for an unanswered question."""
    texts = texts_by_id(answers)
    require_all(questions, texts, "GQA")
    return [
        Score(identity, float(texts[identity].rstrip(".").lower() == question["answer"]), question["imageId"])
        for identity, question in questions.items()
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--question-file", required=True, help="testdev_balanced_questions.json")
    parser.add_argument("--result-file", required=True)
    add_scores_argument(parser)
    args = parser.parse_args(argv)
    questions = read_json(args.question_file)
    scores = score(questions, read_answers(args.result_file))
    print(f"Samples: {len(scores)}\nAccuracy: {100 * sum(row.value for row in scores) / len(scores):.2f}%")
    write_scores(scores, args.scores_file)


if __name__ == "__main__":
    with readable_errors():
        main()
