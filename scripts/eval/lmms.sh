#!/usr/bin/env bash
# lmms-eval with our plugin: bash scripts/eval/lmms.sh CHECKPOINT [TASKS [options of lmms_eval]]
#   TASKS  default llava_paper, the paper's columns that score locally
#   DTYPE  auto, float16, bfloat16, float32     BATCH  default 1     OUT  default playground/out/lmms
# On several GPUs each holds the model and answers its share.
set -euo pipefail
[ $# -ge 1 ] || { echo "Usage: bash $0 CHECKPOINT [TASKS [options of lmms_eval]]" >&2; exit 1; }
checkpoint=$1
tasks=${2:-llava_paper}
shift $(($# < 2 ? $# : 2))
root=$(cd "$(dirname "$0")/../.." && pwd)
python -c 'import lmms_eval' 2>/dev/null || { echo "lmms-eval is not installed: bash scripts/install_lmms_eval.sh" >&2; exit 1; }
processes=$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')
launch=(python -m)
[ "$processes" = 1 ] || launch=(accelerate launch --num_processes "$processes" -m)
exec "${launch[@]}" lmms_eval --model move_kd \
    --model_args "pretrained=$checkpoint,dtype=${DTYPE:-auto}" --tasks "$tasks" \
    --include_path "$root/llava/eval/lmms_eval_plugin/tasks" --batch_size "${BATCH:-1}" \
    --log_samples --output_path "${OUT:-playground/out/lmms}" "$@"
