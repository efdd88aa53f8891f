#!/usr/bin/env bash
# TextVQA, validation 0.5.1, with reference OCR tokens in the prompt.
benchmark=TextVQA
. "$(dirname "$0")/common.sh"
dir=$EVAL_DIR/textvqa
need "$dir/TextVQA_0.5.1_val.json"
questions=$dir/llava_textvqa_val_v051_ocr.jsonl
generate model_vqa_loader "$questions" "$dir/train_images" "$dir/answers/$name.jsonl"
if grep -q "Reference OCR token" "$questions"; then ocr="with reference OCR tokens"; else ocr="WITHOUT OCR tokens"; fi
settings "validation 0.5.1, $ocr, short-answer instruction, 128 new tokens"
python -m llava.eval.eval_textvqa --annotation-file "$dir/TextVQA_0.5.1_val.json" \
    --result-file "$dir/answers/$name.jsonl" --scores-file "$EVAL_DIR/scores/$name/textvqa.jsonl"
