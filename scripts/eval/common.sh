# Sourced by the scripts beside it. Each is called as
#   [CUDA_VISIBLE_DEVICES=0,1] bash scripts/eval/BENCHMARK.sh CHECKPOINT [options of the generator, such as --batch-size 8]
# and finds questions, pictures and annotations below EVAL_DIR in the published layout. A run that was stopped goes on
# where it was; one process runs on each GPU.
#
# EVAL_DIR  default playground/data/eval       CONV    default vicuna_v1
# NAME      default the checkpoint's folder    CHUNKS  default the number of visible GPUs
#           (RUN_checkpoint-N for RUN/checkpoint-N)

set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

fail() { printf '%s\n' "$*" >&2; exit 1; }

[ $# -ge 1 ] || fail "Usage: bash $0 CHECKPOINT [options of the generator]"
checkpoint=$1
shift
options=("$@")
EVAL_DIR=${EVAL_DIR:-playground/data/eval}
CONV=${CONV:-vicuna_v1}
name=$(basename "$checkpoint")
case $name in checkpoint-*) parent=$(basename "$(dirname "$checkpoint")"); [ "$parent" = . ] || name=${parent}_$name ;; esac
name=${NAME:-$name}
if [ -z "${CUDA_VISIBLE_DEVICES-}" ] && command -v nvidia-smi >/dev/null; then
    CUDA_VISIBLE_DEVICES=$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd, -)
fi
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES-}"
CHUNKS=${CHUNKS:-$((${#gpus[@]} > 0 ? ${#gpus[@]} : 1))}

need() {  # need FILE...: everything that must be there before a model is loaded
    local file
    for file in "$@"; do
        [ -e "$file" ] || fail "$file is missing; docs/evaluation.md tells where it comes from."
    done
}

generate() {  # generate MODULE QUESTIONS IMAGES ANSWERS [OPTIONS...]: one chunk on each GPU, joined in ANSWERS
    local module=$1 questions=$2 images=$3 answers=$4 chunk pids=() failed=0 device
    shift 4
    need "$questions" "$images"
    local chunks=${answers%.jsonl}-chunks
    trap 'kill "${pids[@]}" 2>/dev/null; exit 130' INT TERM
    for ((chunk = 0; chunk < CHUNKS; chunk++)); do
        device=()
        [ ${#gpus[@]} = 0 ] || device=("CUDA_VISIBLE_DEVICES=${gpus[chunk % ${#gpus[@]}]}")
        env ${device[@]+"${device[@]}"} python -m "llava.eval.$module" \
            --model-path "$checkpoint" --question-file "$questions" --image-folder "$images" \
            --answers-file "$chunks/$CHUNKS-$chunk.jsonl" --num-chunks "$CHUNKS" --chunk-idx "$chunk" \
            --conv-mode "$CONV" --temperature 0 "$@" ${options[@]+"${options[@]}"} &
        pids+=($!)
    done
    for chunk in "${!pids[@]}"; do wait "${pids[chunk]}" || failed=1; done
    trap - INT TERM
    [ "$failed" = 0 ] || fail "Not all answers were given; run the same command again to go on."
    for ((chunk = 0; chunk < CHUNKS; chunk++)); do cat "$chunks/$CHUNKS-$chunk.jsonl"; done >"$answers.new"
    mv "$answers.new" "$answers"
}

settings() {  # settings TEXT: what a score depends on, printed beside it
    printf '\n%s of %s\n%s; template %s, temperature 0, %s\n' "$benchmark" "$name" "$1" "$CONV" \
        "$(python -c 'from importlib.metadata import version as v; print(*(f"{n} {v(n)}" for n in ("torch", "transformers")), sep=", ")')"
}
