"""MME answers to the official calculation's input: --experiment NAME [--dir playground/data/eval/MME]

Reads DIR/answers/NAME.jsonl and DIR/MME_Benchmark_release_version, writes DIR/eval_tool/answers/NAME/TASK.txt.
"""

import argparse
from pathlib import Path

from llava.errors import readable_errors
from llava.eval.eval_mme import judge, read_truths, write_official
from llava.eval.scores import read_answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--dir", default="./playground/data/eval/MME")
    args = parser.parse_args()
    folder = Path(args.dir)
    answers = read_answers(folder / "answers" / f"{args.experiment}.jsonl")
    judged = judge(answers, read_truths(folder / "MME_Benchmark_release_version"))
    write_official(judged, folder / "eval_tool" / "answers" / args.experiment)


if __name__ == "__main__":
    with readable_errors():
        main()
