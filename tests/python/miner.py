"""A miner's HTTP client in plain `requests`, as today's miners write it: a form in the body of a GET, a multipart POST.

Reads one JSON object from standard input: `url`, `validator` (SS58), `seed` (hex, the miner's), `file`, `model_hash`,
`round`, `folder` (where downloads go), `token` (or null). Goes through a whole round, checks every answer against
the protocol (sections 2 and 8), and prints what it got.
"""

import base64
import hashlib
import json
import os
import sys

import requests
from bittensor_wallet import Keypair


class Miner:
    def __init__(self, task):
        self.url = task["url"]
        self.target = task["validator"]
        self.keys = Keypair.create_from_seed(task["seed"])
        self.session = requests.Session()
        if task["token"]:
            self.session.headers["Authorization"] = f"Bearer {task['token']}"

    def block_message(self, block):
        return bytes(Keypair(ss58_address=self.target).public_key) + block.to_bytes(8, "big")

    def sign(self, message):
        return base64.urlsafe_b64encode(self.keys.sign(message)).rstrip(b"=").decode()

    def signed(self, block, **more):
        return {
            "target_hotkey_ss58": self.target,
            "origin_hotkey_ss58": self.keys.ss58_address,
            "origin_block": block,
            "signature": self.sign(self.block_message(block)),
            **more,
        }

    def get(self, path, status=200, **more):
        response = self.session.get(self.url + path, timeout=30, **more)
        assert response.status_code == status, (path, response.status_code, response.text[:500])
        return response

    def refused(self, response, status, reason):
        assert response.status_code == status, (response.status_code, response.text)
        body = response.json()
        assert sorted(body) == ["detail", "reason"] and body["reason"] == reason, body
        return body

    def receipt(self, round_, block):
        path = f"/submissions/{round_}/{self.keys.ss58_address}"
        by_form = self.get(path, data=self.signed(block)).json()
        by_query = self.get(path, params=self.signed(block)).json()
        assert by_form == by_query
        return by_form

    def submit(self, block, model_hash, path, route="/submit-checkpoint"):
        block_message = self.block_message(block)
        fields = self.signed(block)
        fields["model_hex"] = model_hash
        fields["block_hex"] = block_message.hex()
        fields["signature"] = self.sign(bytes.fromhex(model_hash) + block_message)
        with open(path, "rb") as file:
            files = {"file": (os.path.basename(path), file, "application/octet-stream")}
            return self.session.post(self.url + route, data=fields, files=files, timeout=30)


PHASES = [
    "Distribute", "Train", "MinerCommit1", "MinerCommit2", "Submission", "Validate", "Merge", "ValidatorCommit1",
    "ValidatorCommit2",
]  # fmt: skip


def phases(miner):
    phase = miner.get("/get_phase").json()
    assert phase["phase_name"] == PHASES[phase["phase_index"]], phase
    assert phase["phase_start_block"] + phase["blocks_into_phase"] == phase["block"], phase
    assert phase["block"] + phase["blocks_remaining_in_phase"] == phase["phase_end_block"], phase
    coming = miner.get("/blocks_until_next_phase").json()
    before = miner.get("/previous_phase_blocks").json()
    assert sorted(coming) == sorted(before) == sorted(PHASES)
    for first, last, until in coming.values():
        assert first <= last and phase["block"] + until == first
    assert miner.target in miner.get("/get_validator_whitelist").json()
    assert isinstance(miner.get("/get_init_peer_id").json(), list)
    assert miner.get("/ping").json() == {"status": "ok"}
    assert miner.get("/").json()["hotkey"] == miner.target
    status = miner.get("/status").json()
    assert (status["block"], status["phase"]) == (phase["block"], phase["phase_name"])
    assert miner.get(status["openapi"]).json()["openapi"].startswith("3.1")
    return status


def download(miner, block, slice_, form, folder):
    """A file in one go, then once more in two parts; gives its digest."""
    fields = miner.signed(block, expert_group_id=slice_, format=form)
    with miner.get("/get-checkpoint", data=fields, stream=True) as response:
        name = response.headers["Content-Disposition"].split('filename="')[1].rstrip('"')
        path = os.path.join(folder, name)
        with open(path, "wb") as file:
            for chunk in response.iter_content(1 << 16):
                file.write(chunk)
        headers = response.headers
    with open(path, "rb") as file:
        whole = file.read()
    assert headers["Accept-Ranges"] == "bytes" and int(headers["Content-Length"]) == len(whole)
    assert hashlib.sha256(whole).hexdigest() == headers["x-content-sha256"]
    half = len(whole) // 2
    part = miner.get("/get-checkpoint", 206, data=fields,
                     headers={"Range": f"bytes={half}-", "If-Range": headers["ETag"]})  # fmt: skip
    assert part.headers["Content-Range"] == f"bytes {half}-{len(whole) - 1}/{len(whole)}"
    assert whole[:half] + part.content == whole
    # Of another model the whole file comes, and not a part that does not fit.
    other = miner.get("/get-checkpoint", data=fields, headers={"Range": f"bytes={half}-", "If-Range": '"other"'})
    assert other.content == whole
    behind = miner.get("/get-checkpoint", 416, data=fields, headers={"Range": f"bytes={len(whole)}-"})
    assert behind.headers["Content-Range"] == f"bytes */{len(whole)}"
    known = miner.get("/get-checkpoint", 304, data=fields, headers={"If-None-Match": headers["ETag"]})
    assert known.content == b""
    return {"name": name, "bytes": len(whole), "sha256": headers["x-content-sha256"]}


def main(task):
    miner = Miner(task)
    status = phases(miner)
    block, round_ = status["block"], task["round"]
    downloads = [
        download(miner, block, slice_, form, task["folder"])
        for slice_ in [status["expert_group"], "shared"]
        for form in ["pt", "safetensors"]
    ]
    forged = miner.signed(block) | {"signature": miner.sign(b"something else")}
    miner.refused(miner.get("/get-checkpoint", 403, data=forged), 403, "request_signature")
    missing = {name: value for name, value in miner.signed(block).items() if name != "origin_block"}
    miner.refused(miner.get("/get-checkpoint", 400, data=missing), 400, "missing_field")
    miner.refused(miner.get("/get-checkpoint", 404, data=miner.signed(block, expert_group_id="77")), 404, "no_slice")

    receipts = [miner.receipt(round_, block)]
    miner.refused(miner.submit(block, "00" * 24, task["file"]), 400, "hash_mismatch")
    receipts.append(miner.receipt(round_, block))
    size = os.path.getsize(task["file"])
    assert size <= status["uploads"]["largest_file_bytes"], status["uploads"]
    stored = miner.submit(block, task["model_hash"], task["file"], status["uploads"]["submit"])
    assert stored.status_code == 200, stored.text
    stored = stored.json()
    assert sorted(stored) == ["bytes", "sha256", "status", "stored_path"] and stored["status"] == "ok", stored
    with open(task["file"], "rb") as file:
        assert (stored["bytes"], stored["sha256"]) == (size, hashlib.sha256(file.read()).hexdigest())
    miner.refused(miner.submit(block, task["model_hash"], task["file"], "/submit"), 409, "already_submitted")
    receipts.append(miner.receipt(round_, block))
    json.dump({"downloads": downloads, "stored": stored, "receipts": receipts}, sys.stdout)


if __name__ == "__main__":
    main(json.load(sys.stdin))
