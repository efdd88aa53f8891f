#!/usr/bin/env bash
# VQAv2, test-dev: the server scores it.
benchmark=VQAv2
. "$(dirname "$0")/common.sh"
dir=$EVAL_DIR/vqav2
split=llava_vqav2_mscoco_test-dev2015
need "$dir/llava_vqav2_mscoco_test2015.jsonl"
generate model_vqa_loader "$dir/$split.jsonl" "$dir/test2015" "$dir/answers/$split/$name/merge.jsonl"
settings "test-dev, short-answer instruction, 128 new tokens"
python "$root/scripts/convert_vqav2_for_submission.py" --split "$split" --ckpt "$name" --dir "$dir"
echo "Upload it to the VQA challenge on EvalAI (phase test-dev)."
