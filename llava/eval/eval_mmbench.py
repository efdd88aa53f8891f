"""MMBench accuracy from the answers in the dev tables, by letter alone: the server also lets a judge read free text.

The dev tables hold every question in all rotations of its options, under indices that differ by millions. A question
counts when all its rotations are answered right, as on the server.

    python -m llava.eval.eval_mmbench --annotation-file mmbench_dev_20230712.tsv --result-file answers.jsonl
"""

import argparse
import re
from collections.abc import Sequence
from typing import Any

from llava.errors import readable_errors
from llava.eval.mmbench_table import LETTERS, present, read_rows
from llava.eval.scores import ANSWER, Score, add_scores_argument, read_answers, write_scores

ROTATION = 1_000_000
LETTER = re.compile(r"^\(?([A-D])(?:[.:,)]| *(?:\n|$))")  # not the article of `A dog`


def chosen_letter(text: str) -> str | None:
    found = LETTER.match(text.strip())
    return found.group(1) if found else None


def score(rows: Sequence[dict[str, str]], answers: Sequence[dict[str, Any]]) -> list[Score]:
    """One score a question. Raises ValueError for a table without answers, or a row that nobody answered."""
    rights: dict[int, bool] = {}
    rounds: dict[int, list[bool]] = {}
    truths = {int(row["index"]): row.get("answer") for row in rows}
    for answer in answers:
        index = int(answer["question_id"])
        if not present(truths.get(index)):
            raise ValueError(f"the table has no answer to question {index}; test tables are scored by the server alone")
        letter = chosen_letter(answer["text"])
        shown = answer["option_char"]
        original = shown[LETTERS.index(letter)] if letter and LETTERS.index(letter) < len(shown) else None
        rounds.setdefault(index, []).append(original == truths[index])
    missing = [index for index in truths if index not in rounds]
    if missing:
        raise ValueError(f"{len(missing)} questions have no answer, the first is {missing[0]}")
    for index, hits in rounds.items():
        question = index % ROTATION
        rights[question] = rights.get(question, True) and all(hits)
    return [Score(str(question), float(is_right)) for question, is_right in rights.items()]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotation-file", required=True)
    parser.add_argument("--result-file", required=True)
    add_scores_argument(parser)
    args = parser.parse_args(argv)
    scores = score(read_rows(args.annotation_file), read_answers(args.result_file, (*ANSWER, "option_char")))
    accuracy = 100 * sum(row.value for row in scores) / len(scores)
    print(f"Questions: {len(scores)}\nAccuracy (letters, all rotations): {accuracy:.2f}%")
    write_scores(scores, args.scores_file)


if __name__ == "__main__":
    with readable_errors():
        main()
