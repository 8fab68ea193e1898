#!/usr/bin/env bash
# Makes .venv-bench: the Python that benchmarks of the forward pass are compared with, torch as in
# setup-python.sh and transformers of the deployed validator beside it. Does nothing when it is already there.
#
# usage: scripts/setup-bench.sh [DEST]
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DEST=${1:-$ROOT/.venv-bench}
TRANSFORMERS=5.4.0

WANTED="transformers $TRANSFORMERS"
if [ "$(cat "$DEST/.setup-bench" 2>/dev/null)" = "$WANTED" ]; then
  echo "the peer of the benchmarks is already in $DEST"
  exit 0
fi
"$ROOT/scripts/setup-python.sh" "$DEST"
install() { python3 -m pip --python "$DEST/bin/python" install -q --disable-pip-version-check --no-compile "$@"; }
# What torch itself needs once transformers imports all of it.
NEEDS=(numpy sympy networkx jinja2 fsspec)
install "transformers==$TRANSFORMERS" "${NEEDS[@]}"
"$DEST/bin/python" -c 'from transformers import DeepseekV2ForCausalLM'
echo "$WANTED" > "$DEST/.setup-bench"
echo "the peer of the benchmarks is in $DEST"
