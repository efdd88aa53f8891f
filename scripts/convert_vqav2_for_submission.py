"""VQAv2 answers to an upload file: --split llava_vqav2_mscoco_test-dev2015 --ckpt NAME [--dir DIR]"""

import argparse
from pathlib import Path

from llava.errors import readable_errors
from llava.eval.questions import read_jsonl
from llava.eval.scores import read_answers, write_json
from llava.eval.submissions import vqav2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", default="./playground/data/eval/vqav2")
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--split", required=True)
    args = parser.parse_args()
    folder = Path(args.dir)
    answers = read_answers(folder / "answers" / args.split / args.ckpt / "merge.jsonl")
    questions = read_jsonl(folder / "llava_vqav2_mscoco_test2015.jsonl")
    target = folder / "answers_upload" / args.split / f"{args.ckpt}.json"
    write_json(vqav2(questions, answers), target)
    print(f"{len(answers)} answers for {len(questions)} questions: {target}")


if __name__ == "__main__":
    with readable_errors():
        main()
