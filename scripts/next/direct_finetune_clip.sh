#!/bin/bash
# LLaVA-NeXT, stage 2 with CLIP: tower, projector and language model on any-resolution tiles.
#
# Global batch 128 = 32 GPUs x 4 in the published runs. On fewer GPUs raise --gradient_accumulation_steps.
set -euo pipefail
cd "$(dirname "$0")/../.."

MODEL=${MODEL:-Qwen/Qwen2-7B-Instruct}
VISION_TOWER=${VISION_TOWER:-openai/clip-vit-large-patch14-336}
STAGE1=${STAGE1:-./checkpoints/llava-next-clip-qwen2-7b-pretrain}  # what the pretrain script wrote
DATA=${DATA:-./playground/data/llava_next_data.json}
IMAGES=${IMAGES:-./playground/data}
OUT=${OUT:-./checkpoints/llava-next-clip-qwen2-7b}

deepspeed llava/train/train_mem.py \
    --deepspeed ./scripts/zero3.json \
    --model_name_or_path "$MODEL" \
    --version qwen_1_5 \
    --data_path "$DATA" \
    --image_folder "$IMAGES" \
    --pretrain_mm_mlp_adapter "$STAGE1/mm_projector.bin" \
    --mm_tunable_parts mm_vision_tower,mm_mlp_adapter,mm_language_model \
    --mm_vision_tower_lr 2e-6 \
    --vision_tower "$VISION_TOWER" \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --group_by_modality_length True \
    --image_aspect_ratio anyres \
    --image_grid_pinpoints "[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]" \
    --mm_patch_merge_type spatial_unpad \
    --output_dir "$OUT" \
    --num_train_epochs 1 \
    --per_device_train_batch_size 4 \
    --per_device_eval_batch_size 4 \
    --gradient_accumulation_steps 1 \
    --eval_strategy no \
    --save_strategy steps \
    --save_steps 3000 \
    --save_total_limit 1 \
    --learning_rate 1e-5 \
    --weight_decay 0. \
    --warmup_ratio 0.03 \
    --lr_scheduler_type cosine \
    --logging_steps 1 \
    --bf16 True \
    --tf32 True \
    --model_max_length 32768 \
    --gradient_checkpointing True \
    --dataloader_num_workers 16 \
    --report_to tensorboard \
    --torch_compile True \
    --torch_compile_backend inductor \
    --dataloader_drop_last True \
    --attn_implementation sdpa \
    "$@"
