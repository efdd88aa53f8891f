#!/usr/bin/env bash
# Sets up the environment and runs the whole suite: lint, types, tests. Arguments go to pytest:
#   bash scripts/test.sh tests/parity --parity-dir DIR
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
set_up train,demo,eval,dev
bash scripts/install_lmms_eval.sh
if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then  # for browser tests
    { apt-get update && apt-get install -y --no-install-recommends chromium; } >/dev/null 2>&1 || echo "Chromium could not be installed." >&2
fi

export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_NUM_THREADS=1
ruff check .
ruff format --check .
mypy
workers=$(python -c 'import os; print(max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())))')
exec python -m pytest -n "$workers" --dist loadfile "$@"
