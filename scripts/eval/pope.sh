#!/usr/bin/env bash
# POPE on COCO val2014; the paper's number is the mean F1 of adversarial, popular and random.
benchmark=POPE
. "$(dirname "$0")/common.sh"
dir=$EVAL_DIR/pope
need "$dir/coco"
generate model_vqa_loader "$dir/llava_pope_test.jsonl" "$dir/val2014" "$dir/answers/$name.jsonl"
settings "adversarial, popular and random, short-answer instruction, 128 new tokens"
python -m llava.eval.eval_pope --annotation-dir "$dir/coco" --question-file "$dir/llava_pope_test.jsonl" \
    --result-file "$dir/answers/$name.jsonl" --scores-file "$EVAL_DIR/scores/$name/pope.jsonl"
