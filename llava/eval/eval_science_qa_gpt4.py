"""ScienceQA with another model as a second opinion: its answer counts where it gives one, and ours elsewhere.

    python -m llava.eval.eval_science_qa_gpt4 --base-dir scienceqa --our-result answers.jsonl --gpt4-result other.json

The other model's file is an `--output-result` of `eval_science_qa`: its `outputs` hold a text for each question.
An answer that names no option counts as wrong; the published script drew one at random.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.errors import readable_errors
from llava.eval.eval_science_qa import grade
from llava.eval.questions import read_json
from llava.eval.science_qa import read_problems
from llava.eval.scores import read_answers, texts_by_id

Problems = Mapping[str, dict[str, Any]]
NO_ANSWER = "FAILED"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-dir", required=True, help="holds problems.json and pid_splits.json")
    parser.add_argument("--our-result", required=True, help="answers of llava.eval.model_vqa_science")
    parser.add_argument("--gpt4-result", required=True, help='JSON {"outputs": {question: text}}')
    parser.add_argument("--split", default="test")


def read_inputs(args: argparse.Namespace) -> tuple[Problems, Mapping[str, str], Mapping[str, str]]:
    """The split's problems, our texts and the other model's, each by question."""
    problems = read_problems(Path(args.base_dir), args.split)
    return problems, texts_by_id(read_answers(args.our_result)), read_json(args.gpt4_result)["outputs"]


def combine(problems: Problems, ours: Mapping[str, str], others: Mapping[str, str]) -> Counter[str]:
    """Counts over the questions that both have answered."""
    counts: Counter[str] = Counter()
    for pid in (pid for pid in problems if pid in ours and pid in others):
        mine, other = (grade(pid, problems[pid], texts[pid], "") for texts in (ours, others))
        has_other = other["parsed_ans"] != NO_ANSWER
        counts["total"] += 1
        counts["no answer"] += not has_other
        counts["correct"] += (other if has_other else mine)["is_correct"]
        counts["upper"] += mine["is_correct"] or other["is_correct"]
    return counts


def lines(counts: Counter[str], rows: Sequence[tuple[str, str, str]]) -> str:
    """One line for each (title, key, what the percentage is called)."""
    total = counts["total"]
    shares = ((title, counts[key], name, 100 * counts[key] / total if total else 0.0) for title, key, name in rows)
    return "\n".join(f"Total: {total}, {title}: {count}, {name}: {share:.2f}%" for title, count, name, share in shares)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    counts = combine(*read_inputs(parser.parse_args(argv)))
    rows = [("Correct", "correct", "Accuracy"), ("Correct (upper)", "upper", "Accuracy")]
    print(lines(counts, [*rows, ("GPT-4 NO-ANS", "no answer", "Percentage")]))


if __name__ == "__main__":
    with readable_errors():
        main()
