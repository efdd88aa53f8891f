#!/usr/bin/env bash
# From an empty machine to a LLaVA trained here that answers: environment, world, tiny models, both stages, evaluation.
#   bash scripts/quickstart.sh [--fresh] [--out DIR]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
set_up train,demo
export HF_HUB_OFFLINE=1
exec python -m playground.quickstart "$@"
