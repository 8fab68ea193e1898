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

# What miners send to the gateway. Where a target takes a first byte, it chooses sizes.
mkdir -p corpus/{multipart,multipart_written,boundary,form,file_name,download,tus}
crlf() { sed 's/$/\r/'; }
{
    printf '\007'
    crlf <<'FORM'
--XyZ
Content-Disposition: form-data; name="origin_block"

340
--XyZ
Content-Disposition: form-data; name="file"; filename="m\"1\".pt"
Content-Type: application/octet-stream

PK--XyZ
-
--Xy
--XyZ--
FORM
} | tee corpus/multipart/form > corpus/multipart_written/form
{ printf '\002preamble\r\n'; tail -c +2 corpus/multipart/form; printf 'epilogue'; } > corpus/multipart/preamble
printf 'multipart/form-data; boundary=abc' > corpus/boundary/bare
printf 'Multipart/Form-Data; charset="a\\"b"; boundary="a b"' > corpus/boundary/quoted
printf 'target_hotkey_ss58=5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY&origin_block=340&signature=AA&format=pt\0expert_group_id=%%31' > corpus/form/download
printf 'model_expgroup_0.safetensors' > corpus/file_name/model
printf '../../m.pt' > corpus/file_name/upwards
printf '\000target_hotkey_ss58 NUdydw==,is_confidential,filename bS5wdA==' > corpus/tus/metadata
printf '\00118446744073709551615' > corpus/tus/number
printf '\002sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0=' > corpus/tus/checksum
printf '\00300112233445566778899aabbccddeeff' > corpus/tus/name
printf '\002bytes=3-7\n"tag"\n*\n"a", W/"b"\nTue, 14 Nov 2023 22:13:20 GMT\n\n*/*;q=0.5' > corpus/download/conditions
printf '\004bytes=-5\nTue, 14 Nov 2023 22:13:20 GMT' > corpus/download/suffix
