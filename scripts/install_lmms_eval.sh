#!/usr/bin/env bash
# Installs lmms-eval into the active environment. Its declared requirements bring torchvision and others that do not fit
# every PyTorch, so it comes alone, with the few packages that it needs here (the extra `eval` of this project).
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.7.3
python - "$version" <<'PYTHON' && exit
import sys
from importlib.metadata import PackageNotFoundError, version

try:
    versions = [version(name) for name in ("lmms-eval", "loguru", "sacrebleu", "evaluate", "tenacity", "pytablewriter")]
    sys.exit(versions[0] != sys.argv[1])
except PackageNotFoundError:
    sys.exit(1)
PYTHON
log=$(mktemp)
trap 'rm -f "$log"' EXIT
pip() { python -m pip install --disable-pip-version-check -q "$@" >"$log" 2>&1; }
pip --no-deps "lmms-eval==$version" &&
    pip -c scripts/constraints.txt datasets loguru sacrebleu evaluate tenacity pytablewriter openpyxl || {
    echo "lmms-eval $version could not be installed: $(grep -m1 -E '^ERROR' "$log" || tail -n1 "$log")" >&2
    exit 1
}
