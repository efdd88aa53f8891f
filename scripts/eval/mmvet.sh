#!/usr/bin/env bash
# MM-Vet: its own judge scores the file.
benchmark=MM-Vet
. "$(dirname "$0")/common.sh"
dir=$EVAL_DIR/mm-vet
generate model_vqa "$dir/llava-mm-vet.jsonl" "$dir/images" "$dir/answers/$name.jsonl"
python "$root/scripts/convert_mmvet_for_eval.py" --src "$dir/answers/$name.jsonl" --dst "$dir/results/$name.json"
settings "free answers, 1024 new tokens"
echo "$dir/results/$name.json goes to MM-Vet's evaluator, which asks a language model; name it and its version."
