# Sourced by quickstart.sh and test.sh: creates or reuses .venv, installs this checkout under the pinned
# constraints, and activates the environment. Usage: set_up EXTRAS   (for example: set_up train,dev)
#
# LLAVA_VENV    where the environment goes (default: .venv in the checkout)
# LLAVA_PYTHON  the Python to build it with (default: the first of python3.13 ... python3 that is 3.11 to 3.13)
# PIP_*         pip's own settings are honored; for a smaller CPU-only install of torch:
#               PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

fail() { printf '%s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${LLAVA_PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
            && { command -v "$candidate"; return; }
    done
    return 1
}

check_disk() {  # check_disk FOLDER GIGABYTES
    local free
    free=$(df -Pk "$1" | awk 'NR == 2 { print int($4 / 1048576) }')
    [ "$free" -ge "$2" ] || fail "Not enough disk: $2 GB are needed in $1, $free GB are free."
}

ticker() {  # ticker PID TEXT: elapsed time while PID runs
    local start=$SECONDS
    while kill -0 "$1" 2>/dev/null; do
        [ -t 1 ] && printf '\r%s %d s ' "$2" $((SECONDS - start))
        sleep 1
    done
    [ -t 1 ] && printf '\r'
    printf '%s %d s\n' "$2" $((SECONDS - start))
}

install() {  # install TEXT PIP-ARGUMENTS...
    local text=$1 log=$venv/install.log
    shift
    DS_BUILD_OPS=0 "$venv/bin/python" -m pip install --disable-pip-version-check -c "$root/scripts/constraints.txt" "$@" >>"$log" 2>&1 &
    local pid=$!
    trap 'kill $pid 2>/dev/null; exit 130' INT
    ticker $pid "$text"
    trap - INT
    wait $pid && return
    if grep -qiE 'no space left|errno 28' "$log"; then fail "Installation stopped: the disk is full ($(df -Ph "$venv" | awk 'NR == 2 { print $4 }') free). Log: $log"; fi
    if grep -qiE 'connection|timed out|name resolution|network is unreachable|no matching distribution|could not find a version' "$log"; then
        fail "Installation stopped: the package index could not be reached or lacks a package: $(grep -E '^ERROR' "$log" | tail -1) Log: $log"
    fi
    fail "Installation failed: $(grep -E '^ERROR|rror:' "$log" | tail -1) Log: $log"
}

set_up() {
    local extras=$1 python fingerprint stamp
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    venv=${LLAVA_VENV:-$root/.venv}
    if [ ! -x "$venv/bin/python" ]; then
        python=$(find_python) || fail "Python 3.11, 3.12 or 3.13 is needed and none was found (${LLAVA_PYTHON:+LLAVA_PYTHON=$LLAVA_PYTHON, }$(python3 --version 2>/dev/null || echo 'no python3')). Set LLAVA_PYTHON to one."
        check_disk "$(dirname "$venv")" 5
        "$python" -m venv "$venv" >/dev/null 2>&1 || { rm -rf "$venv"; fail "$python could not create a virtual environment in $venv (on Debian: apt install python3-venv)."; }
    fi
    fingerprint=$(cat "$root/pyproject.toml" "$root/scripts/constraints.txt" | cksum | cut -d' ' -f1)
    stamp=$venv/installed-$fingerprint-${extras//,/-}
    if [ ! -e "$stamp" ]; then
        check_disk "$venv" 4
        : >"$venv/install.log"
        install "Installing PyTorch" torch
        install "Installing everything else" -e "$root[$extras]"
        touch "$stamp"
    fi
    . "$venv/bin/activate"
    export TOKENIZERS_PARALLELISM=false
}
