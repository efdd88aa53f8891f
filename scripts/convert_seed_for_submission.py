"""SEED-Bench answers scored and written for upload.

    python scripts/convert_seed_for_submission.py --annotation-file SEED-Bench.json --result-file A.jsonl \\
        --result-upload-file U.jsonl
"""

import argparse
import json
from pathlib import Path

from llava.errors import readable_errors
from llava.eval.questions import read_json
from llava.eval.scores import add_scores_argument, read_answers, write_scores
from llava.eval.submissions import seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotation-file", required=True)
    parser.add_argument("--result-file", required=True)
    parser.add_argument("--result-upload-file", required=True)
    add_scores_argument(parser)
    args = parser.parse_args()
    annotation = read_json(args.annotation_file)
    lines, scores, accuracy = seed(annotation, read_answers(args.result_file))
    for group, percent in accuracy.items():
        name = f"{group.capitalize()} accuracy" if group in ("total", "image", "video") else group
        print(f"{name}: {percent:.2f}%")
    Path(args.result_upload_file).parent.mkdir(parents=True, exist_ok=True)
    Path(args.result_upload_file).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_scores(scores, args.scores_file)


if __name__ == "__main__":
    with readable_errors():
        main()
