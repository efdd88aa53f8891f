#!/bin/bash
# MoVE-KD v1.0, stage 2: everything learns from conversations and from 3 teachers.
#
#   bash scripts/move-kd/finetune-v1.0.sh                                   7B on the GPUs of this machine
#   SIZE=13b bash scripts/move-kd/finetune-v1.0.sh                          13B, under ZeRO-3
#   RECIPE=ours bash scripts/move-kd/finetune-v1.0.sh                       our recipe in place of the published one
#   sbatch scripts/slurm.sh scripts/move-kd/finetune-v1.0.sh     several machines (or scripts/multinode.sh)
#
# Batch 8 per GPU as published; on how many GPUs was not. Flags given to this script replace those below.
set -euo pipefail
cd "$(dirname "$0")/../.."

SIZE=${SIZE:-7b}
MODEL=${MODEL:-lmsys/vicuna-$SIZE-v1.5}
ZERO=${ZERO:-$([ "$SIZE" = 7b ] && echo zero2_finetune || echo zero3)}
VISION_TOWER=${VISION_TOWER:-openai/clip-vit-large-patch14-336}
TEACHERS=${TEACHERS:-clip eva convnext}  # in ./checkpoints; sam:path=DIR names another place
STAGE1=${STAGE1:-./checkpoints/move-kd-v1.0-$SIZE-pretrain}  # what pretrain-v1.0.sh wrote, same RECIPE
DATA=${DATA:-./playground/data/llava_v1_5_mix665k.json}
IMAGES=${IMAGES:-./playground/data}
OUT=${OUT:-./checkpoints/move-kd-v1.0-$SIZE}

RECIPE=${RECIPE:-release}  # or paper, or ours
METHOD=(--kd_recipe "$RECIPE")
if [ "$RECIPE" = release ]; then  # the published values; the other recipes have their own
    METHOD+=(--kd_w 0.5 --kd_memory_w 0.8 --token_weight True --teacher_weight True)
    METHOD+=(--moe_encoder_dense False --moe_encoder_lora_rank 32 --moe_encoder_lora_alpha 1)
    METHOD+=(--moe_encoder_num_experts 3 --moe_encoder_balance_w 0.01)
fi
START=(--pretrain_mm_mlp_adapter "$STAGE1/mm_projector.bin")
START+=(--pretrain_mole_encoder "$STAGE1/mole_encoder.bin")
START+=(--pretrain_encoder_adapter "$STAGE1/encoder_adapter.bin")
if [ "$RECIPE" = ours ]; then  # its stage 1 trained the tower too, which is in no file of its own
    START=(--init_from "$STAGE1")
fi

# shellcheck disable=SC2086  # TEACHERS is a list
deepspeed llava/train/train_mem.py \
    --deepspeed "./scripts/$ZERO.json" \
    --model_name_or_path "$MODEL" \
    --version v1 \
    --data_path "$DATA" \
    --image_folder "$IMAGES" \
    --vision_tower "$VISION_TOWER" \
    "${START[@]}" \
    --encoder_teachers $TEACHERS \
    --kd True \
    --moe_encoder True \
    "${METHOD[@]}" \
    --finetune True \
    --tune_all True \
    --tune_encoder True \
    --tune_encoder_adapter True \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    --output_dir "$OUT" \
    --num_train_epochs 1 \
    --per_device_train_batch_size 8 \
    --per_device_eval_batch_size 4 \
    --gradient_accumulation_steps 1 \
    --eval_strategy no \
    --save_strategy steps \
    --save_steps 1000 \
    --save_total_limit 1 \
    --learning_rate 2e-5 \
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
