#!/bin/bash
# LLaVA 1.5, stage 2 with LoRA on a 4-bit language model: one GPU of 24 GB is enough for 7B.
#
# Global batch 128 = 8 GPUs x 16. On fewer GPUs raise --gradient_accumulation_steps in proportion.
# Quantized weights cannot be sharded, so this runs under ZeRO-2.
set -euo pipefail
cd "$(dirname "$0")/../.."

MODEL=${MODEL:-lmsys/vicuna-13b-v1.5}  # or lmsys/vicuna-7b-v1.5
VISION_TOWER=${VISION_TOWER:-openai/clip-vit-large-patch14-336}
STAGE1=${STAGE1:-./checkpoints/llava-v1.5-13b-pretrain}  # what pretrain.sh wrote
DATA=${DATA:-./playground/data/llava_v1_5_mix665k.json}
IMAGES=${IMAGES:-./playground/data}
OUT=${OUT:-./checkpoints/llava-v1.5-13b-qlora}

deepspeed llava/train/train_mem.py \
    --lora_enable True \
    --lora_r 128 \
    --lora_alpha 256 \
    --bits 4 \
    --double_quant True \
    --quant_type nf4 \
    --mm_projector_lr 2e-5 \
    --deepspeed ./scripts/zero2.json \
    --model_name_or_path "$MODEL" \
    --version v1 \
    --data_path "$DATA" \
    --image_folder "$IMAGES" \
    --vision_tower "$VISION_TOWER" \
    --pretrain_mm_mlp_adapter "$STAGE1/mm_projector.bin" \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    --output_dir "$OUT" \
    --num_train_epochs 1 \
    --per_device_train_batch_size 16 \
    --per_device_eval_batch_size 4 \
    --gradient_accumulation_steps 1 \
    --eval_strategy no \
    --save_strategy steps \
    --save_steps 50000 \
    --save_total_limit 1 \
    --learning_rate 2e-4 \
    --weight_decay 0. \
    --warmup_ratio 0.03 \
    --lr_scheduler_type cosine \
    --logging_steps 1 \
    --bf16 True \
    --tf32 True \
    --model_max_length 2048 \
    --gradient_checkpointing True \
    --dataloader_num_workers 4 \
    --report_to tensorboard \
    "$@"
