"""Questions without pictures, two assistants' answers reviewed by a judge.

    python -m llava.eval.eval_gpt_review -q questions.jsonl -a reference.jsonl answers.jsonl \\
        -r rule.json -o reviews.jsonl --judge "python my_judge.py"
"""

from llava.errors import readable_errors
from llava.eval import gpt_review


def main(argv: list[str] | None = None) -> None:
    gpt_review.main(__doc__ or "", argv, prefix="", has_context=False, with_boxes=False)


if __name__ == "__main__":
    with readable_errors():
        main()
