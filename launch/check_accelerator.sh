#!/usr/bin/env bash
# Checks this machine's GPU or TPU in at most MINUTES (9): kernels, training, encoding,
# each against PyTorch: check_accelerator.sh [MINUTES] [options of
# launch.bench.accelerator]. Installs nothing; runs PYTHON (python3), which has JAX.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=9
if [[ "${1:-}" =~ ^[0-9.]+$ ]]; then
  minutes="$1"
  shift
fi
# The command ends by itself; this is for the case that it does not
limit=$(awk "BEGIN { print 60 * $minutes }")
exec timeout --kill-after=5 "$limit" "${PYTHON:-python3}" -m launch.bench.accelerator \
  --minutes="$minutes" "$@"
