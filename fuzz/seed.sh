#!/usr/bin/env bash
# Fills the corpora from the golden vectors, so that fuzzing begins behind the first checks.
set -euo pipefail
cd "$(dirname "$0")"
VECTORS=${CONNITO_VECTORS:-../tests/vectors}/model
mkdir -p corpus/{pt,pickle,safetensors,safetensors_header,stream}
cp "$VECTORS"/*.pt corpus/pt/
cp "$VECTORS"/{miner,outer,hostile}*.safetensors corpus/safetensors/
for file in "$VECTORS"/{miner1_g0,hostile_*}.*; do
    # The first byte is the size of the pieces.
    { printf '\020'; cat "$file"; } > "corpus/stream/$(basename "$file")"
done
python3 - "$VECTORS" <<'PY'
import glob, os, struct, sys, zipfile
for path in glob.glob(f"{sys.argv[1]}/*.pt"):
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            with open(f"corpus/pickle/{os.path.basename(path)}", "wb") as out:
                out.write(archive.read(name))
for path in glob.glob(f"{sys.argv[1]}/m*.safetensors"):
    with open(path, "rb") as file, open(f"corpus/safetensors_header/{os.path.basename(path)}", "wb") as out:
        out.write(file.read(struct.unpack("<Q", file.read(8))[0]))
PY
