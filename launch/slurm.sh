#!/usr/bin/env bash
# Runs one command on the nodes of a SLURM job, with one process per node:
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh launch.train \
#     --config=configs/starbucks_sts.py --workdir=/shared/runs/sts
# All nodes must share the working tree and the workdir; .venv needs the GPU packages
# that launch/README.md names. A job that is preempted, or loses a node, is queued again
# and resumes. Two minutes before its time limit it saves; submit it again to resume.
#SBATCH --job-name=embax
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=TERM@120
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
# Without this list, JAX gives each process a single GPU under SLURM.
if [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then
  JAX_LOCAL_DEVICE_IDS="$(seq -s , 0 $((SLURM_GPUS_ON_NODE - 1)))"
  export JAX_LOCAL_DEVICE_IDS
fi
exec srun --kill-on-bad-exit=1 .venv/bin/python -m "$@"
