#!/bin/bash
# sbatch docs/accelerate/slurm.sh stage2_prior/train.py --config NAME --codes CODES --output_dir RUN
#
# Starts a script of this project on all GPUs of the job, from the folder with the clone. What must
# differ on your cluster stands in the #SBATCH lines; flags of sbatch win over them.
#
# With ACCELERATE_CONFIG=docs/accelerate/fsdp.yaml the weights of a prior are sharded.
#
# Before its time is up a training saves a checkpoint, and the same command goes on from there. Two
# or more calls of `sbatch --dependency=singleton ...` with one job name run one after the other.
#SBATCH --job-name=latent-prior
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

if [ "$#" -eq 0 ]; then
    echo "usage: sbatch $0 SCRIPT FLAGS..." >&2
    exit 2
fi

per_node=${SLURM_GPUS_ON_NODE:-1}
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
launcher=(--multi_gpu)
if [ -n "${ACCELERATE_CONFIG:-}" ]; then
    launcher=(--config_file "$ACCELERATE_CONFIG")
fi
launcher+=(
    --num_machines "$SLURM_NNODES"
    --num_processes "$((SLURM_NNODES * per_node))"
    --main_process_ip "$host"
    --main_process_port "$((10000 + SLURM_JOB_ID % 50000))"
    --rdzv_backend c10d
    --max_restarts 3
)

# Otherwise a launcher that joins again waits for an address that torch 2.14 does not send anew.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# shellcheck disable=SC2016 # each node knows its own number
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' \
    launch "${launcher[@]}" "$@"
