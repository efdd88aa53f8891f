#!/usr/bin/env bash
# MME; the paper's number is the perception score.
benchmark=MME
. "$(dirname "$0")/common.sh"
dir=$EVAL_DIR/MME
data=$dir/MME_Benchmark_release_version
generate model_vqa_loader "$dir/llava_mme.jsonl" "$data" "$dir/answers/$name.jsonl"
settings "perception and cognition, short-answer instruction, 128 new tokens"
python -m llava.eval.eval_mme --data-dir "$data" --result-file "$dir/answers/$name.jsonl" \
    --official-dir "$dir/eval_tool/answers/$name" --scores-file "$EVAL_DIR/scores/$name/mme.jsonl"
