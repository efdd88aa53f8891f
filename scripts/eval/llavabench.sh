#!/usr/bin/env bash
# LLaVA-Bench (in the wild): a judge of yours, JUDGE="python my_judge.py", compares the answers with GPT-4's.
# RULE  default EVAL_DIR/llava-bench-in-the-wild/rule.json, LLaVA's llava/eval/table/rule.json
benchmark="LLaVA-Bench (in the wild)"
. "$(dirname "$0")/common.sh"
dir=$EVAL_DIR/llava-bench-in-the-wild
rule=${RULE:-$dir/rule.json}
[ -n "${JUDGE-}" ] || fail "JUDGE names no command that reviews; docs/evaluation.md shows one."
need "$rule" "$dir/context.jsonl" "$dir/answers_gpt4.jsonl"
generate model_vqa "$dir/questions.jsonl" "$dir/images" "$dir/answers/$name.jsonl"
settings "free answers, 1024 new tokens; judge: $JUDGE"
python -m llava.eval.eval_gpt_review_bench --question "$dir/questions.jsonl" --context "$dir/context.jsonl" \
    --answer-list "$dir/answers_gpt4.jsonl" "$dir/answers/$name.jsonl" --rule "$rule" \
    --output "$dir/reviews/$name.jsonl" --judge "$JUDGE"
python -m llava.eval.summarize_gpt_review --files "$dir/reviews/$name.jsonl"
