#!/usr/bin/env bash
# Make the environments of the peers we measure against, one each, never mixed with ours.
#   benchmarks/peers.sh trl transformers-4.56
set -euo pipefail
cd "$(dirname "$0")/.."
pin() { grep -i "^$1==" constraints.txt; }

make_peer() { # name, then what pip is to install
    local name=$1 home=.peers/$1
    shift
    if [ "$(cat "$home/.installed" 2>/dev/null)" = "$*" ]; then return; fi
    .venv/bin/python -m venv "$home"
    "$home/bin/python" -m pip install --quiet "$(pin torch)"
    "$home/bin/python" -m pip install --quiet "$@"
    echo "$*" >"$home/.installed"
}

for peer in "$@"; do
    case $peer in
    trl) make_peer trl "trl==1.16.0" "$(pin torch)" "$(pin transformers)" "$(pin peft)" ;;
    transformers-4.56) make_peer transformers-4.56 "transformers==4.56.2" "$(pin torch)" "$(pin safetensors)" ;;
    *) echo "unknown peer: $peer (known: trl, transformers-4.56)" >&2 && exit 2 ;;
    esac
done
