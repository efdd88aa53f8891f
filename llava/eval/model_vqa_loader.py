"""`llava.eval.model_vqa` with the short answers of the VQA benchmarks: at most 128 new tokens.

    python -m llava.eval.model_vqa_loader --model-path DIR --image-folder DIR --question-file Q.jsonl --answers-file A.jsonl
"""

from llava.eval.model_vqa import main

if __name__ == "__main__":
    main(max_new_tokens=128)
