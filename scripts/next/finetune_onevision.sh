#!/bin/bash
# A trained LLaVA-NeXT on a mixture of images and videos at up to 6x6 tiles (anyres_max_9).
# DATA is a YAML mixture (docs/data.md).
#
# Global batch 256 = 128 GPUs x 1 x 2 in the published runs.
set -euo pipefail
cd "$(dirname "$0")/../.."

MODEL=${MODEL:-./checkpoints/llava-next-siglip-qwen2-7b}
VISION_TOWER=${VISION_TOWER:-google/siglip-so400m-patch14-384}
DATA=${DATA:-./playground/data/mixture.yaml}
IMAGES=${IMAGES:-./playground/data}
VIDEOS=${VIDEOS:-./playground/data/videos}
OUT=${OUT:-./checkpoints/llava-onevision-qwen2-7b}

deepspeed llava/train/train_mem.py \
    --deepspeed ./scripts/zero3.json \
    --model_name_or_path "$MODEL" \
    --version qwen_1_5 \
    --data_path "$DATA" \
    --image_folder "$IMAGES" \
    --video_folder "$VIDEOS" \
    --mm_tunable_parts mm_vision_tower,mm_mlp_adapter,mm_language_model \
    --mm_vision_tower_lr 2e-6 \
    --vision_tower "$VISION_TOWER" \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --group_by_modality_length True \
    --image_aspect_ratio anyres_max_9 \
    --image_grid_pinpoints "(1x1),...,(6x6)" \
    --mm_patch_merge_type spatial_unpad \
    --frames_upbound 32 \
    --output_dir "$OUT" \
    --num_train_epochs 1 \
    --per_device_train_batch_size 1 \
    --per_device_eval_batch_size 4 \
    --gradient_accumulation_steps 2 \
    --eval_strategy no \
    --save_strategy steps \
    --save_steps 1000 \
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
