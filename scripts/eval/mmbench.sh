#!/usr/bin/env bash
# MMBench, dev: the server scores the sheet; the local score takes letters alone.
benchmark="MMBench, dev"
. "$(dirname "$0")/common.sh"
dir=$EVAL_DIR/mmbench
split=mmbench_dev_20230712
table=$dir/$split.tsv
answers=$dir/answers/$split/$name.jsonl
# The pictures are inside the table.
generate model_vqa_mmbench "$table" "$dir" "$answers" --single-pred-prompt --lang en
python "$root/scripts/convert_mmbench_for_submission.py" --annotation-file "$table" \
    --result-dir "$dir/answers/$split" --upload-dir "$dir/answers_upload/$split" --experiment "$name"
settings "$split, letter instruction (en), 1024 new tokens"
python -m llava.eval.eval_mmbench --annotation-file "$table" --result-file "$answers" \
    --scores-file "$EVAL_DIR/scores/$name/mmbench.jsonl"
echo "The sheet for the server is $dir/answers_upload/$split/$name.xlsx"
