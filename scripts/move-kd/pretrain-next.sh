#!/bin/bash
# MoVE-KD on LLaVA-NeXT, stage 1: projector, tower, experts and heads learn from captions and teachers. Our recipe; this
# combination was never released, so there are no published numbers to compare with.
#
#   bash scripts/move-kd/pretrain-next.sh                                      Vicuna 7B; SIZE=13b for 13B
#   MODEL=Qwen/Qwen2-7B-Instruct bash scripts/move-kd/pretrain-next.sh         Qwen2
#   sbatch scripts/slurm.sh scripts/move-kd/pretrain-next.sh     several machines (or scripts/multinode.sh)
#
# Global batch 256 = 16 GPUs x 16. Flags given to this script replace those below.
set -euo pipefail
cd "$(dirname "$0")/../.."

SIZE=${SIZE:-7b}
MODEL=${MODEL:-lmsys/vicuna-$SIZE-v1.5}  # or Qwen/Qwen2-7B-Instruct
VISION_TOWER=${VISION_TOWER:-openai/clip-vit-large-patch14-336}
TEACHERS=${TEACHERS:-clip sam eva convnext}  # in ./checkpoints; sam:path=DIR names another place
DATA=${DATA:-./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}
IMAGES=${IMAGES:-./playground/data/LLaVA-Pretrain/images}
OUT=${OUT:-./checkpoints/move-kd-next-$(basename "$MODEL")-pretrain}

# shellcheck disable=SC2086  # TEACHERS is a list
deepspeed llava/train/train_mem.py \
    --deepspeed ./scripts/zero2.json \
    --model_name_or_path "$MODEL" \
    --version plain \
    --data_path "$DATA" \
    --image_folder "$IMAGES" \
    --vision_tower "$VISION_TOWER" \
    --encoder_teachers $TEACHERS \
    --kd_recipe ours \
    --mm_tunable_parts mm_mlp_adapter,mm_vision_tower \
    --mm_vision_tower_lr 2e-6 \
    --tune_encoder True \
    --tune_encoder_adapter True \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --output_dir "$OUT" \
    --num_train_epochs 1 \
    --per_device_train_batch_size 16 \
    --per_device_eval_batch_size 4 \
    --gradient_accumulation_steps 1 \
    --eval_strategy no \
    --save_strategy steps \
    --save_steps 500 \
    --save_total_limit 1 \
    --learning_rate 1e-3 \
    --weight_decay 0. \
    --warmup_ratio 0.03 \
    --lr_scheduler_type cosine \
    --logging_steps 1 \
    --bf16 True \
    --tf32 True \
    --model_max_length 2048 \
    --gradient_checkpointing True \
    --dataloader_num_workers 16 \
    --report_to tensorboard \
    "$@"
