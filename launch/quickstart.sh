#!/usr/bin/env bash
# Makes all-MiniLM-L6-v2 elastic on the docstrings and code of the installed Python
# packages, scores it at every depth and width on held-out packages, and searches them:
# quickstart.sh [workdir]. Run it again to resume or to see the results again.
set -euo pipefail
cd "$(dirname "$0")/.."
workdir="${1:-runs/quickstart}"
bash launch/setup.sh requirements.txt launch/models.txt
python=.venv/bin/python

echo "== 1/4 training, scored before and after" >&2
$python -m launch.train --config=configs/quickstart.py --workdir="$workdir"
echo "== 2/4 every depth and width" >&2
$python -m launch.evaluate --model="$workdir" --task=pydocs_retrieval --grid
echo "== 3/4 a search with half of the depth and a sixth of the width" >&2
$python -m launch.search --model="$workdir" --corpus=pydocs --hits=5 \
  --query="read a file line by line" --depth=3 --dim=64 \
  --output="$workdir/evals/search.md"
echo "== 4/4 the report, also as a page: $workdir/report.html" >&2
$python -m launch.report --workdir="$workdir"
cat >&2 <<END
== Next, with a file of your own: pairs.jsonl, a line for each {"query": ..., "positive": ...}
$python -m launch.train --workdir=runs/mine \\
    --config=configs/finetune.py:train=pairs.jsonl,sizes=starbucks
$python -m launch.search --model=runs/mine --corpus=texts.txt --query="..."
$python -m launch.export --model=runs/mine --output=model --depth=3 --dim=64
END
