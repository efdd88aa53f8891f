#!/usr/bin/env bash
# From an empty machine to a LLaVA and a MoVE-KD trained here, compared: environment, world, tiny models and teachers,
# both stages of either, evaluation. 8 to 12 minutes on two cores, as fast as those are.
#   bash scripts/quickstart.sh [--fresh] [--out DIR] [--recipe lab]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
set_up train,demo
export HF_HUB_OFFLINE=1
exec python -m playground.quickstart "$@"
