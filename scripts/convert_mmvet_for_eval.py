"""MM-Vet answers to the official scorer's format: --src answers.jsonl --dst results.json"""

import argparse

from llava.errors import readable_errors
from llava.eval.scores import read_answers, write_json
from llava.eval.submissions import mmvet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--src", required=True)
    parser.add_argument("--dst", required=True)
    args = parser.parse_args()
    write_json(mmvet(read_answers(args.src)), args.dst)


if __name__ == "__main__":
    with readable_errors():
        main()
