#!/bin/bash
# The nearest public relative of the LLaVA 1.6 recipe: any-resolution tiles, trained tower, Mistral or Vicuna.
#
# Global batch 128 = 16 GPUs x 8; ZeRO-3 with offload.
set -euo pipefail
cd "$(dirname "$0")/../.."

MODEL=${MODEL:-mistralai/Mistral-7B-Instruct-v0.2}
VERSION=${VERSION:-mistral_instruct}  # v1 for Vicuna
VISION_TOWER=${VISION_TOWER:-openai/clip-vit-large-patch14-336}
STAGE1=${STAGE1:-./checkpoints/llava-mistral-7b-pretrain}  # what pretrain.sh wrote with MODEL above
DATA=${DATA:-./playground/data/llava_next_data.json}
IMAGES=${IMAGES:-./playground/data}
OUT=${OUT:-./checkpoints/llava-v1.6-mistral-7b}

deepspeed llava/train/train_mem.py \
    --deepspeed ./scripts/zero3_offload.json \
    --model_name_or_path "$MODEL" \
    --version "$VERSION" \
    --data_path "$DATA" \
    --image_folder "$IMAGES" \
    --vision_tower "$VISION_TOWER" \
    --pretrain_mm_mlp_adapter "$STAGE1/mm_projector.bin" \
    --unfreeze_mm_vision_tower True \
    --mm_vision_tower_lr 2e-6 \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --image_aspect_ratio anyres \
    --image_grid_pinpoints "[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]" \
    --mm_patch_merge_type spatial_unpad \
    --group_by_modality_length True \
    --output_dir "$OUT" \
    --num_train_epochs 1 \
    --per_device_train_batch_size 8 \
    --per_device_eval_batch_size 4 \
    --gradient_accumulation_steps 1 \
    --eval_strategy no \
    --save_strategy steps \
    --save_steps 1500 \
    --save_total_limit 1 \
    --learning_rate 2e-5 \
    --weight_decay 0. \
    --warmup_ratio 0.03 \
    --lr_scheduler_type cosine \
    --logging_steps 1 \
    --bf16 True \
    --tf32 True \
    --model_max_length 4096 \
    --gradient_checkpointing True \
    --dataloader_num_workers 4 \
    --report_to tensorboard \
    "$@"
