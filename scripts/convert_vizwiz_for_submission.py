"""VizWiz answers for upload: --annotation-file llava_test.jsonl --result-file A.jsonl --result-upload-file U.json"""

import argparse

from llava.errors import readable_errors
from llava.eval.questions import read_jsonl
from llava.eval.scores import read_answers, write_json
from llava.eval.submissions import vizwiz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotation-file", required=True)
    parser.add_argument("--result-file", required=True)
    parser.add_argument("--result-upload-file", required=True)
    args = parser.parse_args()
    write_json(vizwiz(read_jsonl(args.annotation_file), read_answers(args.result_file)), args.result_upload_file)


if __name__ == "__main__":
    with readable_errors():
        main()
