"""GQA answers to the official scorer's format: --src merge.jsonl --dst testdev_balanced_predictions.json"""

import argparse

from llava.errors import readable_errors
from llava.eval.scores import read_answers, write_json
from llava.eval.submissions import gqa


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--src", required=True)
    parser.add_argument("--dst", required=True)
    args = parser.parse_args()
    write_json(gqa(read_answers(args.src)), args.dst)


if __name__ == "__main__":
    with readable_errors():
        main()
