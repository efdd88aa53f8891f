#!/bin/bash
#SBATCH --job-name=llava
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=%x-%j.log
#
# Any training script under SLURM: sbatch scripts/slurm.sh scripts/v1_5/finetune.sh
# A requeued job goes on from the last complete checkpoint. Scripts of v1_5 and next save rarely or never before the
# end: add --save_strategy steps --save_steps 500, or they begin again.
set -euo pipefail

export NODES=$SLURM_NNODES
export GPUS=${SLURM_GPUS_PER_NODE##*:}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD

# Slurm 22.05 to 23.02 does not hand a job's --cpus-per-task on to srun.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c 'NODE=$SLURM_NODEID exec bash scripts/multinode.sh "$@"' launch "$@"
