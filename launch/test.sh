#!/usr/bin/env bash
# Makes .venv if needed, then runs ruff and the whole test suite: test.sh [pytest options].
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh tests/requirements.txt
.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet .
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true
# Commands that tests start compile as quickly as the tests themselves do, and find
# their programs compiled; so do later runs.
export JAX_DISABLE_MOST_OPTIMIZATIONS=1
export JAX_COMPILATION_CACHE_DIR="${XDG_CACHE_HOME:-${HOME:-$PWD}/.cache}/embax/programs"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
# The data set that many tests read is made once, before they share it.
.venv/bin/python -c 'from research.data.sources import SOURCES; SOURCES["pydocs"]()' \
  > /dev/null 2>&1
# Each process takes neighbours, which share what their files make and compile.
exec .venv/bin/python -m pytest --numprocesses 2 --dist worksteal "$@"
