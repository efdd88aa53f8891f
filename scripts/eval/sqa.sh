#!/usr/bin/env bash
# ScienceQA, test (CQM-A); the paper's number is the accuracy on questions with a picture.
benchmark=ScienceQA
. "$(dirname "$0")/common.sh"
dir=$EVAL_DIR/scienceqa
need "$dir/problems.json" "$dir/pid_splits.json"
generate model_vqa_science "$dir/llava_test_CQM-A.json" "$dir/images/test" "$dir/answers/$name.jsonl" --single-pred-prompt
settings "test, CQM-A, letter instruction, 1024 new tokens"
python -m llava.eval.eval_science_qa --base-dir "$dir" --result-file "$dir/answers/$name.jsonl" \
    --output-file "$dir/answers/${name}_output.json" --output-result "$dir/answers/${name}_result.json" \
    --scores-file "$EVAL_DIR/scores/$name/sqa.jsonl"
