#!/usr/bin/env bash
# Arms times seeds, with statistics: bash scripts/lab.sh [--arms ours paper] [--seeds 0 1 2 3 4] [--out DIR]
# See `bash scripts/lab.sh --help`, and docs/evidence.md for what came out.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
set_up train,demo
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
exec python -m playground.lab "$@"
