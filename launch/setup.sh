#!/usr/bin/env bash
# Makes .venv if it is missing and installs the packages in FILE, and those in BARE
# without their dependencies: setup.sh [FILE [BARE]]. Prints only errors if there is
# nothing to do.
set -euo pipefail
cd "$(dirname "$0")/.."
wanted="${1:-requirements.txt}"
bare="${2:-}"

python=""
for name in python3.11 python3.12 python3.13 python3 python; do
  if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
    python="$name"
    break
  fi
done
if [ -z "$python" ]; then
  echo "error: Python 3.11, 3.12 or 3.13 is needed, and none is on the PATH" >&2
  exit 1
fi

# install FILE [options of pip]: unless FILE has not changed since it was installed
install() {
  local sum stamp=".venv/$(echo "$1" | tr / -).sha256"
  sum="$(cat requirements.txt "$1" | cksum)"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$sum" ]; then
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    echo "installing $1 into .venv ..." >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$@"
    echo "$sum" > "$stamp"
  fi
}
install "$wanted"
if [ -n "$bare" ]; then
  install "$bare" --no-deps
fi
