#!/usr/bin/env bash
# Trains a 2D Matryoshka encoder on the docstrings and code of the installed Python
# packages, scores it at every depth and width on held-out packages, and searches them:
# quickstart.sh [workdir]. Run it again to resume or to see the results again.
set -euo pipefail
cd "$(dirname "$0")/.."
workdir="${1:-runs/quickstart}"
bash launch/setup.sh
python=.venv/bin/python

echo "== 1/4 training, scored before, during and after" >&2
$python -m launch.train --config=configs/quickstart.py --workdir="$workdir"
echo "== 2/4 every depth and width" >&2
$python -m launch.evaluate --model="$workdir" --task=pydocs_retrieval --grid
echo "== 3/4 a search of code it has not seen" >&2
$python -m launch.search --model="$workdir" --corpus=pydocs --hits=5 \
  --query="read a file line by line"
echo "== 4/4 the report" >&2
$python -m launch.report --workdir="$workdir"
