"""The held-out questions as a task of lmms-eval, so that a harness that knows nothing of this world scores its models.

    python -m playground.lmms_task --data playground/out/data --to playground/out/tasks
    python -m lmms_eval --model move_kd --model_args pretrained=playground/out/stage2 --device cpu \\
        --include_path playground/out/tasks --tasks playground_heldout --batch_size 64
"""

import argparse
import json
from pathlib import Path

from llava.eval.questions import read_jsonl

TASK = """\
task: playground_heldout
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {table}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function playground_utils.visual
doc_to_text: !function playground_utils.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4, temperature: 0, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}}]
metadata: [{{version: 1.0}}]
"""
FUNCTIONS = """\
def visual(document):
    return [document["picture"].convert("RGB")]


def text(document, lmms_eval_specific_kwargs=None):
    return document["question"]
"""


def write_task(data: Path, folder: Path) -> None:
    """A YAML, its functions and a table with the pictures inside. data: what playground.llava_data wrote."""
    from datasets import Dataset, Features, Image, Value

    lines = read_jsonl(data / "heldout.jsonl")
    columns = {
        "question_id": [line["question_id"] for line in lines],
        "question": [line["text"] for line in lines],
        "category": [line["category"] for line in lines],
        "answer": [line["answer"] for line in lines],
        "picture": [str(data / "images" / line["image"]) for line in lines],
    }
    kinds = {name: Image() if name == "picture" else Value("string") for name in columns}
    folder.mkdir(parents=True, exist_ok=True)
    table = folder.resolve() / "heldout.parquet"
    Dataset.from_dict(columns, features=Features(kinds)).to_parquet(str(table))
    (folder / "playground_heldout.yaml").write_text(TASK.format(table=json.dumps(str(table))))
    (folder / "playground_utils.py").write_text(FUNCTIONS)
    print(f"task playground_heldout, {len(lines)} questions: --include_path {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what playground.llava_data wrote")
    parser.add_argument("--to", type=Path, required=True, help="folder of the task")
    options = parser.parse_args()
    write_task(options.data, options.to)


if __name__ == "__main__":
    main()
