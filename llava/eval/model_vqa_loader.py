"""`llava.eval.model_vqa` with the short answers of the VQA benchmarks: at most 128 new tokens.

python -m llava.eval.model_vqa_loader --model-path DIR --image-folder DIR --question-file Q.jsonl --answers-file A.jsonl
"""

from llava.eval import model_vqa
from llava.eval.answering import run_program


def main(argv: list[str] | None = None) -> None:
    model_vqa.main(argv, max_new_tokens=128)


if __name__ == "__main__":
    run_program(main)
