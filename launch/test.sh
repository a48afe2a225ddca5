#!/usr/bin/env bash
# Makes .venv if needed, then runs ruff and the tests: test.sh [--all] [pytest options].
# --all adds the tests marked slow, and runs all tests with XLA's optimizations on, as
# in normal use.
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
  # The same settings for commands that tests start as processes.
  export JAX_DISABLE_MOST_OPTIMIZATIONS=1
  export JAX_COMPILATION_CACHE_DIR="$programs"
fi
# Commands that tests start, and later runs, find compiled programs in the cache.
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
# Make the data set that many tests read once, before they run in parallel.
.venv/bin/python -c 'from research.data.sources import SOURCES; SOURCES["pydocs"]()' \
  > /dev/null 2>&1
# Tests of one file stay together, since they share fixtures and compiled programs.
exec .venv/bin/python -m pytest --numprocesses 2 --dist worksteal "${options[@]}" "$@"
