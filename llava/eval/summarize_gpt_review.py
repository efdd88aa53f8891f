"""Mean scores of review files: category, hypothesis relative to reference in percent, and both means times ten.

python -m llava.eval.summarize_gpt_review -f reviews.jsonl
python -m llava.eval.summarize_gpt_review -d DIR
"""

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from llava.errors import readable_errors
from llava.eval.questions import read_jsonl

PREFIXES = ("gpt4_text", "reviews_", "review_")


def scores_of(review: dict[str, Any]) -> list[float]:
    return review["tuple"] if "tuple" in review else review["score"]


def summarize(reviews: Sequence[dict[str, Any]], ignored: Collection[int] = ()) -> dict[str, tuple[float, ...]]:
    """{category: (ratio in percent, reference, hypothesis)}, `all` among them. Failed reviews (-1) are left out."""
    groups: dict[str, list[list[float]]] = {}
    for review in reviews:
        scores = scores_of(review)
        if review["question_id"] in ignored or min(scores) < 0:
            continue
        for category in {"all", review.get("category", "all")}:
            groups.setdefault(category, []).append(scores)
    result: dict[str, tuple[float, ...]] = {}
    for category, rows in sorted(groups.items()):
        reference, hypothesis = (round(sum(column) / len(rows), 3) for column in zip(*rows, strict=True))
        result[category] = (round(100 * hypothesis / reference, 1), round(10 * reference, 1), round(10 * hypothesis, 1))
    return result


def review_files(folder: Path) -> list[Path]:
    """Those that are named like reviews, or all if none is. Raises ValueError if there are none."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise ValueError(f"{folder} holds no .jsonl files of reviews")
    return [file for file in files if file.name.startswith(PREFIXES)] or files


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", "--dir", default=None, help="its files named gpt4_text*, reviews_* or review_*, else all")
    parser.add_argument("-v", "--version", default=None, help="only files whose name contains it")
    parser.add_argument("-s", "--select", nargs="*", default=None, help="only files whose name contains all of these")
    parser.add_argument("-f", "--files", nargs="*", default=None)
    parser.add_argument("-i", "--ignore", nargs="*", type=int, default=(), help="question ids to leave out")
    args = parser.parse_args(argv)
    if not args.files and not args.dir:
        parser.error("name review files with -f, or a folder of them with -d")
    root = Path(args.dir or ".")
    files = [root / name for name in args.files or ()] or review_files(root)
    wanted = [*(args.select or ()), *([args.version] if args.version else ())]
    for file in files:
        if not all(word in file.name for word in wanted):
            continue
        print(file.stem.replace("gpt4_text_", ""))
        reviews = read_jsonl(file)
        for category, values in summarize(reviews, args.ignore).items():
            print(category, *values)
        failed = sum(min(scores_of(review)) < 0 for review in reviews)
        if failed:
            print(f"{failed} of {len(reviews)} reviews hold no two scores and are left out")
        print("=" * 33)


if __name__ == "__main__":
    with readable_errors():
        main()
