#!/usr/bin/env bash
# VizWiz, test: the server scores it.
benchmark=VizWiz
. "$(dirname "$0")/common.sh"
dir=$EVAL_DIR/vizwiz
upload=$dir/answers_upload/$name.json
generate model_vqa_loader "$dir/llava_test.jsonl" "$dir/test" "$dir/answers/$name.jsonl"
python "$root/scripts/convert_vizwiz_for_submission.py" --annotation-file "$dir/llava_test.jsonl" \
    --result-file "$dir/answers/$name.jsonl" --result-upload-file "$upload"
settings "test, with the sentence about unanswerable questions, 128 new tokens"
echo "Upload $upload to the VizWiz challenge on EvalAI."
