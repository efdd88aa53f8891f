#!/usr/bin/env bash
# GQA, testdev balanced.
benchmark=GQA
. "$(dirname "$0")/common.sh"
dir=$EVAL_DIR/gqa
answers=$dir/answers/llava_gqa_testdev_balanced/$name/merge.jsonl
generate model_vqa_loader "$dir/llava_gqa_testdev_balanced.jsonl" "$dir/data/images" "$answers"
python "$root/scripts/convert_gqa_for_eval.py" --src "$answers" --dst "$dir/data/testdev_balanced_predictions.json"
settings "testdev balanced, short-answer instruction, 128 new tokens"
need "$dir/data/testdev_balanced_questions.json"
python -m llava.eval.eval_gqa --question-file "$dir/data/testdev_balanced_questions.json" --result-file "$answers" \
    --scores-file "$EVAL_DIR/scores/$name/gqa.jsonl"
