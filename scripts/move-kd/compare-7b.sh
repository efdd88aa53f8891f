#!/bin/bash
# One run of the comparison that docs/evidence.md plans: both stages of an arm with a seed. The arms see the same data in
# the same batches (256 and 128 on 8 GPUs) for as many steps.
#
#   bash scripts/move-kd/compare-7b.sh ARM SEED
#
# ARM: llava, llava-early (the tower trains in both stages), paper, ours-no-experts or ours.
set -euo pipefail
cd "$(dirname "$0")/../.."

ARM=${1:-}
SEED=${2:-}
STAGE1=${OUT:-./checkpoints/compare-7b}/$ARM-$SEED-pretrain
STAGE2=${OUT:-./checkpoints/compare-7b}/$ARM-$SEED
DRAWN=(--seed "$SEED" --data_seed "$SEED")
EARLY=(--mm_tunable_parts mm_mlp_adapter,mm_vision_tower --mm_vision_tower_lr 2e-5)
LATER=(--mm_tunable_parts mm_mlp_adapter,mm_vision_tower,mm_language_model --mm_vision_tower_lr 2e-5)
HALF=(--gradient_accumulation_steps 2)  # of batches of half the size: the teachers need memory besides
export SIZE=7b MODEL=${MODEL:-lmsys/vicuna-7b-v1.5} STAGE1

case "$ARM-$SEED" in
llava-[0-9]*)
    OUT=$STAGE1 bash scripts/v1_5/pretrain.sh "${DRAWN[@]}"
    OUT=$STAGE2 bash scripts/v1_5/finetune.sh "${DRAWN[@]}" "${LATER[@]}"
    ;;
llava-early-[0-9]*)
    OUT=$STAGE1 bash scripts/v1_5/pretrain.sh "${DRAWN[@]}" "${EARLY[@]}"
    OUT=$STAGE2 bash scripts/v1_5/finetune.sh "${DRAWN[@]}" "${LATER[@]}" --pretrain_mm_mlp_adapter "" --init_from "$STAGE1"
    ;;
paper-[0-9]* | ours-[0-9]* | ours-no-experts-[0-9]*)
    CHANGED=()
    if [ "$ARM" = ours-no-experts ]; then
        CHANGED=(--moe_encoder False --tune_encoder False)
    fi
    export RECIPE=${ARM%%-*}
    OUT=$STAGE1 bash scripts/move-kd/pretrain-v1.0.sh "${DRAWN[@]}" "${HALF[@]}" "${CHANGED[@]}"
    OUT=$STAGE2 bash scripts/move-kd/finetune-v1.0.sh "${DRAWN[@]}" "${HALF[@]}" "${CHANGED[@]}"
    ;;
*)
    echo "'$ARM' '$SEED': expected ARM SEED, with ARM one of llava, llava-early, paper, ours-no-experts, ours" >&2
    exit 2
    ;;
esac
