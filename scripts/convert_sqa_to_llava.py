"""ScienceQA's problems.json and pid_splits.json to LLaVA's samples, written beside them.

python scripts/convert_sqa_to_llava.py convert_to_llava --base-dir scienceqa --prompt-format CQM-A --split test
python scripts/convert_sqa_to_llava.py convert_to_jsonl --base-dir scienceqa --prompt-format QCM-LEA --split train
"""

import argparse
import json
from pathlib import Path

from llava.errors import readable_errors
from llava.eval.science_qa import instruction, read_problems, sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("convert_to_llava", "convert_to_jsonl"))
    parser.add_argument("--base-dir", "--base_dir", required=True)
    parser.add_argument("--split", required=True)
    parser.add_argument("--prompt-format", "--prompt_format", default="QCM-LEPA")
    args = parser.parse_args()
    folder = Path(args.base_dir)
    problems = read_problems(folder, args.split)
    name = f"{args.split}_{args.prompt_format}"
    if args.task == "convert_to_llava":
        samples = [sample(identity, problem, args.prompt_format) for identity, problem in problems.items()]
        (folder / f"llava_{name}.json").write_text(json.dumps(samples, indent=2), encoding="utf-8")
    else:
        lines = [
            json.dumps(instruction(identity, problem, args.prompt_format)) for identity, problem in problems.items()
        ]
        (folder / f"scienceqa_{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"Number of samples: {len(problems)}")


if __name__ == "__main__":
    with readable_errors():
        main()
