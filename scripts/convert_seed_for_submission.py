"""SEED-Bench answers scored and written for upload: --annotation-file SEED-Bench.json --result-file A.jsonl --result-upload-file U.jsonl"""

import argparse
import json
from pathlib import Path

from llava.eval.submissions import read_answers, seed

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotation-file", required=True)
    parser.add_argument("--result-file", required=True)
    parser.add_argument("--result-upload-file", required=True)
    args = parser.parse_args()
    lines, accuracy = seed(json.loads(Path(args.annotation_file).read_text()), read_answers(args.result_file))
    for group, percent in accuracy.items():
        print(f"{group}: {percent:.2f}%")
    Path(args.result_upload_file).parent.mkdir(parents=True, exist_ok=True)
    Path(args.result_upload_file).write_text("".join(json.dumps(line) + "\n" for line in lines))
