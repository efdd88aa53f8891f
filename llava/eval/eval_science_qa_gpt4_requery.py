"""ScienceQA where a judge has seen both answers and given a third: its answer counts where it gives one, else ours.

    python -m llava.eval.eval_science_qa_gpt4_requery --base-dir scienceqa --our-result answers.jsonl \\
        --gpt4-result other.json --requery-result requery.jsonl --output-result result.json

Files as for `eval_science_qa_gpt4`; `requery.jsonl` has {question_id, text} lines for some or all questions.
"""

import argparse
from collections import Counter
from collections.abc import Mapping

from llava.errors import readable_errors
from llava.eval.eval_science_qa import grade
from llava.eval.eval_science_qa_gpt4 import NO_ANSWER, Problems, add_arguments, lines, read_inputs
from llava.eval.scores import read_answers, require_all, texts_by_id, write_json

Texts = Mapping[str, str]
ROWS = (
    ("Our-Correct", "ours", "Accuracy"),
    ("GPT-4-Correct", "other", "Accuracy"),
    ("GPT-4 NO-ANS", "no answer", "Percentage"),
    ("GPT-4-OursVisual-Correct", "other or ours", "Accuracy"),
    ("Requery-Correct", "requery", "Accuracy"),
    ("Correct upper", "upper", "Accuracy"),
)


def requery(problems: Problems, ours: Texts, others: Texts, third: Texts) -> tuple[Counter[str], dict[str, int]]:
    """Counts over all questions, and the option chosen for each. Raises ValueError if ours or the other lacks one."""
    require_all(problems, dict(ours), "--our-result")
    require_all(problems, dict(others), "--gpt4-result")
    counts: Counter[str] = Counter()
    chosen: dict[str, int] = {}
    for pid, problem in problems.items():
        mine, other, judged = (grade(pid, problem, texts.get(pid), "") for texts in (ours, others, third))
        final = mine if judged["parsed_ans"] == NO_ANSWER else judged
        has_other = other["parsed_ans"] != NO_ANSWER
        chosen[pid] = final["chosen"]
        counts["total"] += 1
        counts["ours"] += mine["is_correct"]
        counts["other"] += other["is_correct"]
        counts["no answer"] += not has_other
        counts["other or ours"] += (other if has_other else mine)["is_correct"]
        counts["requery"] += final["is_correct"]
        counts["upper"] += mine["is_correct"] or other["is_correct"]
    return counts, chosen


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--requery-result", required=True, help="JSONL {question_id, text}")
    parser.add_argument("--output-result", required=True, help="JSON of the accuracy and every choice")
    args = parser.parse_args(argv)
    counts, chosen = requery(*read_inputs(args), texts_by_id(read_answers(args.requery_result)))
    print(lines(counts, ROWS))
    accuracy = 100 * counts["requery"] / max(1, counts["total"])
    result = {"acc": accuracy, "correct": counts["requery"], "count": counts["total"], "results": chosen, "outputs": {}}
    write_json(result, args.output_result)


if __name__ == "__main__":
    with readable_errors():
        main()
