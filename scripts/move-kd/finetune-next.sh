#!/bin/bash
# MoVE-KD on LLaVA-NeXT, stage 2: any-resolution tiles, everything trains. Our recipe; this combination was never
# released, so there are no published numbers to compare with.
#
#   bash scripts/move-kd/finetune-next.sh                                      Vicuna 7B; SIZE=13b for 13B
#   MODEL=Qwen/Qwen2-7B-Instruct VERSION=qwen_1_5 bash scripts/move-kd/finetune-next.sh
#   VIEWS=all bash scripts/move-kd/finetune-next.sh    teachers see every tile, not only the whole
#   sbatch scripts/slurm.sh scripts/move-kd/finetune-next.sh     several machines (or scripts/multinode.sh)
#
# Global batch 128 = 16 GPUs x 8, under ZeRO-3 with the teachers sharded too. Flags given to this script replace those
# below.
set -euo pipefail
cd "$(dirname "$0")/../.."

SIZE=${SIZE:-7b}
MODEL=${MODEL:-lmsys/vicuna-$SIZE-v1.5}  # or Qwen/Qwen2-7B-Instruct
VERSION=${VERSION:-v1}  # qwen_1_5 for Qwen2
VISION_TOWER=${VISION_TOWER:-openai/clip-vit-large-patch14-336}
TEACHERS=${TEACHERS:-clip sam eva convnext}  # in ./checkpoints; sam:path=DIR names another place
VIEWS=${VIEWS:-base}
STAGE1=${STAGE1:-./checkpoints/move-kd-next-$(basename "$MODEL")-pretrain}  # what pretrain-next.sh wrote
DATA=${DATA:-./playground/data/llava_next_data.json}
IMAGES=${IMAGES:-./playground/data}
OUT=${OUT:-./checkpoints/move-kd-next-$(basename "$MODEL")}

# shellcheck disable=SC2086  # TEACHERS is a list
deepspeed llava/train/train_mem.py \
    --deepspeed ./scripts/zero3.json \
    --model_name_or_path "$MODEL" \
    --version "$VERSION" \
    --data_path "$DATA" \
    --image_folder "$IMAGES" \
    --vision_tower "$VISION_TOWER" \
    --init_from "$STAGE1" \
    --encoder_teachers $TEACHERS \
    --distill_views "$VIEWS" \
    --shard_teachers True \
    --kd_recipe ours \
    --finetune True \
    --tune_all True \
    --tune_encoder True \
    --tune_encoder_adapter True \
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
    --save_steps 1000 \
    --save_total_limit 1 \
    --learning_rate 2e-5 \
    --mm_vision_tower_lr 2e-6 \
    --weight_decay 0. \
    --warmup_ratio 0.03 \
    --lr_scheduler_type cosine \
    --logging_steps 1 \
    --bf16 True \
    --tf32 True \
    --model_max_length 4096 \
    --gradient_checkpointing True \
    --dataloader_num_workers 16 \
    --report_to tensorboard \
    "$@"
