#!/usr/bin/env bash
# Labels a dataset as an array job: each task takes a share of the shards, and needs no other.
#
#   sbatch --array=0-63 scripts/launch/slurm_labelling.sh -m openai/whisper-large-v3 \
#     -d my_speech.jsonl -l ja --return_timestamps -o /shared/labelled
#
# The output folder must be on a disk that all machines see. The last task to end completes the
# dataset. A task that was killed is started again (--requeue) and goes on where it was; what a task
# left that never came back is made by the same command without an array.
#SBATCH --job-name=labelling
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=labelling-%A-%a.log
set -euo pipefail

# Slurm runs a copy of this file: the repository is where `sbatch` was called.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/../..}"
share=()
if [[ -n "${SLURM_ARRAY_TASK_ID:-}" ]]; then
  share=(--shard_index "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))"
    --num_shards "$SLURM_ARRAY_TASK_COUNT")
fi
exec python run_pseudo_labelling.py "$@" "${share[@]}"
