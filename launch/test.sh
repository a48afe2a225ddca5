#!/usr/bin/env bash
# Makes .venv if needed, then runs ruff and the tests: test.sh [--all] [pytest options].
# With --all also those marked slow, and all of them with XLA's optimizations on, as
# users run.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh tests/requirements.txt
.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet .
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true
programs="${XDG_CACHE_HOME:-${HOME:-$PWD}/.cache}/embax/programs"
if [ "${1:-}" = "--all" ]; then
  shift
  options=()
  export JAX_DISABLE_MOST_OPTIMIZATIONS=0
  export JAX_COMPILATION_CACHE_DIR="$programs-optimized"
else
  options=(-m "not slow")
  # Commands that tests start compile as quickly as the tests themselves do.
  export JAX_DISABLE_MOST_OPTIMIZATIONS=1
  export JAX_COMPILATION_CACHE_DIR="$programs"
fi
# Programs are found compiled by the commands that tests start, and by later runs.
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
# The data set that many tests read is made once, before they share it.
.venv/bin/python -c 'from research.data.sources import SOURCES; SOURCES["pydocs"]()' \
  > /dev/null 2>&1
# Each process takes neighbors, which share what their files make and compile.
exec .venv/bin/python -m pytest --numprocesses 2 --dist worksteal "${options[@]}" "$@"
