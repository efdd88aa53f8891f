"""`llava.eval.model_vqa` with the short answers of the VQA benchmarks: at most 128 new tokens.

python -m llava.eval.model_vqa_loader --model-path DIR --image-folder DIR --question-file Q.jsonl --answers-file A.jsonl
"""

from llava.conversation import conv_templates
from llava.eval.answering import run_generator, run_program
from llava.eval.model_vqa import read_arguments, read_questions
from llava.mm_utils import get_model_name_from_path


def mmtag_template(conv_mode: str, model_name: str) -> str:
    """Projector-only checkpoints, named `plain`, are asked in the variant of a template that announces pictures."""
    is_plain = "plain" in model_name and "finetune" not in model_name.lower() and "mmtag" not in conv_mode
    if is_plain and conv_mode + "_mmtag" in conv_templates:
        print(f"{model_name} is a plain checkpoint: using the template {conv_mode}_mmtag")
        return conv_mode + "_mmtag"
    return conv_mode


def main(argv: list[str] | None = None) -> None:
    args = read_arguments(argv, max_new_tokens=128)
    args.conv_mode = mmtag_template(args.conv_mode, get_model_name_from_path(args.model_path))
    run_generator(args, *read_questions(args))


if __name__ == "__main__":
    run_program(main)
