"""MMBench answers to the upload sheet: --annotation-file X.tsv --result-dir DIR --upload-dir DIR --experiment NAME"""

import argparse
from pathlib import Path

from llava.errors import readable_errors
from llava.eval.scores import read_answers
from llava.eval.submissions import mmbench_sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotation-file", required=True)
    parser.add_argument("--result-dir", required=True)
    parser.add_argument("--upload-dir", required=True)
    parser.add_argument("--experiment", required=True)
    args = parser.parse_args()
    answers = read_answers(Path(args.result_dir) / f"{args.experiment}.jsonl")
    mmbench_sheet(args.annotation_file, answers, Path(args.upload_dir) / f"{args.experiment}.xlsx")


if __name__ == "__main__":
    with readable_errors():
        main()
