#!/usr/bin/env bash
# Runs one command on the GPUs of a SLURM job, with one process per GPU:
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh launch.train \
#     --config=configs/starbucks_sts.py --workdir=/shared/runs/sts
# Run the same command again to resume. All nodes must share the working tree and the
# workdir; .venv needs the GPU packages that launch/README.md names.
#SBATCH --job-name=embax
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
if [ $# -lt 1 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "error: submit it: sbatch OPTIONS launch/slurm.sh MODULE FLAGS..." >&2
  exit 1
fi
if [ ! -x .venv/bin/python ]; then
  echo "error: no .venv in $PWD; submit from the root, after launch/setup.sh" >&2
  exit 1
fi
exec srun --kill-on-bad-exit=1 .venv/bin/python -m "$@"
