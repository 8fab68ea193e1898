#!/usr/bin/env bash
# Puts a CPU libtorch (the version that tch 0.24 asks for) into third_party/libtorch, assembled from
# Python wheels; no Python package is installed. Does nothing when it is already there.
# Linux on x86-64 only.
#
# usage: scripts/setup-libtorch.sh [DEST]      -> DEST/{lib,include,build-version}
set -euo pipefail

VERSION=2.11.0
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DEST=${1:-$ROOT/third_party/libtorch}

fail() { echo "setup-libtorch: $*" >&2; exit 1; }

if [ "$(cat "$DEST/build-version" 2>/dev/null)" = "$VERSION" ]; then
  echo "libtorch $VERSION is already in $DEST"
  exit 0
fi

case "$(uname -s)-$(uname -m)" in
  Linux-x86_64) ;;
  *) fail "$(uname -s) on $(uname -m) is not supported; put a libtorch $VERSION into $DEST by hand" ;;
esac
command -v python3 >/dev/null || fail "python3 is missing; run: sudo apt-get install -y python3 python3-pip"
command -v cc >/dev/null || fail "a C compiler is missing; run: sudo apt-get install -y build-essential"
if ! python3 -m pip --version >/dev/null 2>&1; then
  # Debian's python3 comes without pip.
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && apt-get install -y -qq python3-pip
  else
    fail "pip is missing; run: sudo apt-get install -y python3-pip"
  fi
fi

TMP=$(mktemp -d)
# Beside the destination, so that the last step is a rename: a run that is cut off leaves nothing.
NEW=$DEST.new
trap 'rm -rf "$TMP" "$NEW"' EXIT
rm -rf "$NEW"
mkdir -p "$NEW/lib"

echo "fetching libtorch $VERSION (about 540 MB)"
python3 -m pip download -q --no-deps --no-cache-dir --only-binary=:all: \
  --python-version 3.11 --implementation cp --abi cp311 --abi none \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
  -d "$TMP" "torch==$VERSION" 'nvidia-cuda-runtime==13.0.96' 'nvidia-cuda-cupti==13.0.85'

# libtorch_cpu.so does not load without libcudart and libcupti, hence the two small wheels.
python3 - "$TMP" "$NEW" <<'PY'
import glob, os, shutil, sys, zipfile
tmp, dest = sys.argv[1:]
keep = {"libc10.so", "libtorch_cpu.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"}
found = set()
for wheel in glob.glob(f"{tmp}/*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            name, base = info.filename, os.path.basename(info.filename)
            if base in keep and "/lib/" in name:
                out = f"{dest}/lib/{base}"
                found.add(base)
            elif name.startswith("torch/include/") and not name.endswith("/"):
                out = f"{dest}/{name[6:]}"
            else:
                continue
            os.makedirs(os.path.dirname(out), exist_ok=True)
            with archive.open(info) as source, open(out, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
if missing := keep - found:
    sys.exit(f"setup-libtorch: the wheels lack {sorted(missing)}")
PY

# The wheel's libtorch.so is an empty shim that needs libtorch_cuda.so. This one has the same soname
# and needs the CPU library: a binary linked against it takes a CUDA libtorch of the same version as
# well, by LD_LIBRARY_PATH.
cc -shared -nostdlib -o "$NEW/lib/libtorch.so" \
  -Wl,-soname,libtorch.so,--no-as-needed,-rpath,'$ORIGIN' -L"$NEW/lib" -ltorch_cpu
echo "$VERSION" > "$NEW/build-version"

mkdir -p "$(dirname "$DEST")"
rm -rf "$DEST"
mv "$NEW" "$DEST"
echo "libtorch $VERSION is in $DEST ($(du -sh "$DEST" | cut -f1))"
