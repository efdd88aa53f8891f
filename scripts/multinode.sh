#!/bin/bash
# Any training script of this repository on several machines: run the same line on each of them.
#
#   NODES=2 NODE=0 HEAD=10.0.0.1 bash scripts/multinode.sh scripts/v1_5/finetune.sh     (on the first)
#   NODES=2 NODE=1 HEAD=10.0.0.1 bash scripts/multinode.sh scripts/v1_5/finetune.sh     (on the second)
#
# Checkpoints go to OUT on every machine: put it on a shared disk, or pass --save_on_each_node True.
# The global batch grows with the machines: adjust --gradient_accumulation_steps.
set -euo pipefail

NODES=${NODES:?number of machines}
NODE=${NODE:?which of them this is, from 0}
HEAD=${HEAD:?address of machine 0}
PORT=${PORT:-29500}
GPUS=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}

script=${1:?which training script}
shift

# The scripts start with `deepspeed`; here that word means torchrun with the settings above.
deepspeed() {
    torchrun --nnodes "$NODES" --node_rank "$NODE" --master_addr "$HEAD" --master_port "$PORT" \
        --nproc_per_node "$GPUS" "$@"
}
export -f deepspeed
export NODES NODE HEAD PORT GPUS

exec bash "$script" "$@"
