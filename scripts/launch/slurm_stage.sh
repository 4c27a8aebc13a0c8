#!/usr/bin/env bash
# Runs one stage as a Slurm job, on one GPU, on several, or on several machines.
#
#   sbatch --nodes=2 --gpus-per-node=8 scripts/launch/slurm_stage.sh run_distillation.py \
#     -m student-init --teacher openai/whisper-large-v3 -d filtered --language ja -o student
#
# A recipe on a cluster, each of its GPU stages a job that it waits for:
#
#   LAUNCH="sbatch --wait --nodes=2 scripts/launch/slurm_stage.sh" ./scripts/kotoba_whisper_v1.0.sh
#
# Folders must be on a disk that all machines see. Two minutes before its end a job is told to stop: a
# training saves then, and the same command goes on. CONFIG names another file of this folder, such as
# fsdp2.
#SBATCH --job-name=distillery
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=distillery-%j.log
set -euo pipefail

# Slurm runs a copy of this file: the repository is where `sbatch` was called.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/../..}"
processes=$((SLURM_NNODES * SLURM_GPUS_ON_NODE))
config=$([ "$processes" = 1 ] && echo 1_gpu || echo 8_gpus)
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
flags=(--config_file "scripts/launch/${CONFIG:-$config}.yaml"
  --num_machines "$SLURM_NNODES" --num_processes "$processes")
if [ "$SLURM_NNODES" -gt 1 ]; then
  flags+=(--main_process_ip "${hosts[0]}" --main_process_port "${PORT:-29500}")
fi
# Each machine has one task, which starts the processes on its GPUs, and alone knows its number.
# shellcheck disable=SC2016
exec srun bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' accelerate \
  "${flags[@]}" "$@"
