#!/usr/bin/env bash
# SEED-Bench, pictures and videos (the middle frame).
benchmark=SEED-Bench
. "$(dirname "$0")/common.sh"
dir=$EVAL_DIR/seed_bench
need "$dir/SEED-Bench.json"
answers=$dir/answers/$name/merge.jsonl
generate model_vqa_loader "$dir/llava-seed-bench.jsonl" "$dir" "$answers"
settings "letter instruction, one frame of a video, 128 new tokens"
python "$root/scripts/convert_seed_for_submission.py" --annotation-file "$dir/SEED-Bench.json" \
    --result-file "$answers" --result-upload-file "$dir/answers_upload/$name.jsonl" \
    --scores-file "$EVAL_DIR/scores/$name/seed.jsonl"
