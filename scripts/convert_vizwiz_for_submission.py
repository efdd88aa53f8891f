"""VizWiz answers to an upload file: --annotation-file llava_test.jsonl --result-file answers.jsonl --result-upload-file upload.json"""

import argparse

from llava.eval.answering import read_jsonl
from llava.eval.submissions import read_answers, vizwiz, write_json

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotation-file", required=True)
    parser.add_argument("--result-file", required=True)
    parser.add_argument("--result-upload-file", required=True)
    args = parser.parse_args()
    write_json(vizwiz(read_jsonl(args.annotation_file), read_answers(args.result_file)), args.result_upload_file)
