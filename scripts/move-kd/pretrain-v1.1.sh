#!/bin/bash
# MoVE-KD v1.1, stage 1: projector, experts and distillation heads learn from captions and from 4 teachers.
#
#   bash scripts/move-kd/pretrain-v1.1.sh                                   7B on the GPUs of this machine
#   SIZE=13b bash scripts/move-kd/pretrain-v1.1.sh                          13B
#   RECIPE=ours bash scripts/move-kd/pretrain-v1.1.sh                       our recipe in place of the published one
#   sbatch scripts/slurm.sh scripts/move-kd/pretrain-v1.1.sh     several machines (or scripts/multinode.sh)
#
# Batch 16 per GPU as published; on how many GPUs was not. Flags given to this script replace those below.
set -euo pipefail
cd "$(dirname "$0")/../.."

SIZE=${SIZE:-7b}
MODEL=${MODEL:-lmsys/vicuna-$SIZE-v1.5}
VISION_TOWER=${VISION_TOWER:-openai/clip-vit-large-patch14-336}
TEACHERS=${TEACHERS:-clip sam eva convnext}  # in ./checkpoints; sam:path=DIR names another place
DATA=${DATA:-./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}
IMAGES=${IMAGES:-./playground/data/LLaVA-Pretrain/images}
OUT=${OUT:-./checkpoints/move-kd-v1.1-$SIZE-pretrain}

RECIPE=${RECIPE:-release}  # or paper, or ours
METHOD=(--kd_recipe "$RECIPE")
if [ "$RECIPE" = release ]; then  # the published values; the other recipes have their own
    METHOD+=(--kd_w 0.5 --kd_memory_w 0.8 --token_weight True --teacher_weight True)
    METHOD+=(--moe_encoder_dense False --moe_encoder_lora_rank 32 --moe_encoder_lora_alpha 1)
    METHOD+=(--moe_encoder_num_experts 3 --moe_encoder_balance_w 0.01)
elif [ "$RECIPE" = ours ]; then  # the whole tower learns from the start, at its rate in stage 2
    METHOD+=(--mm_tunable_parts mm_mlp_adapter,mm_vision_tower --mm_vision_tower_lr 2e-5)
fi

# shellcheck disable=SC2086  # TEACHERS is a list
deepspeed llava/train/train_mem.py \
    --deepspeed ./scripts/zero2.json \
    --model_name_or_path "$MODEL" \
    --version plain \
    --data_path "$DATA" \
    --image_folder "$IMAGES" \
    --vision_tower "$VISION_TOWER" \
    --encoder_teachers $TEACHERS \
    --kd True \
    --moe_encoder True \
    "${METHOD[@]}" \
    --tune_mm_mlp_adapter True \
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
    --save_steps 1000 \
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
