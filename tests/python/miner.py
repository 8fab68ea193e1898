"""A miner's HTTP client in plain `requests`, as today's miners write it: a form in the body of a GET, a multipart POST.

Reads one JSON object from standard input: `url`, `validator` (SS58), `seed` (hex, the miner's), `file`, `model_hash`,
`round`, `folder` (where downloads go), `token` (or null), `how` (`form` or `tus`). Goes through a whole round, checks every answer against
the protocol (sections 2 and 8), and prints what it got.
"""

import base64
import hashlib
import json
import os
import sys
import time

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


class Resumable:
    """An upload by tus 1.0, with nothing but requests: bytes in several PATCHes, one of which is cut off."""

    def __init__(self, miner, block, model_hash, path):
        self.miner = miner
        with open(path, "rb") as file:
            self.content = file.read()
        block_message = miner.block_message(block)
        fields = miner.signed(block, model_hex=model_hash, block_hex=block_message.hex())
        fields["signature"] = miner.sign(bytes.fromhex(model_hash) + block_message)
        fields["filename"] = os.path.basename(path)
        self.metadata = ",".join(
            f"{name} {base64.b64encode(str(value).encode()).decode()}" for name, value in fields.items()
        )

    def ask(self, method, url, **headers):
        data = headers.pop("data", None)
        headers = {"Tus-Resumable": "1.0.0"} | {name.replace("_", "-"): str(value) for name, value in headers.items()}
        response = self.miner.session.request(method, url, headers=headers, data=data, timeout=30)
        assert response.headers["Tus-Resumable"] == "1.0.0"
        return response

    def create(self):
        made = self.ask("POST", self.miner.url + "/files", Upload_Length=len(self.content), Upload_Metadata=self.metadata)
        if made.status_code != 201:
            return made
        self.url = requests.compat.urljoin(self.miner.url, made.headers["Location"])
        return made

    def offset(self):
        head = self.ask("HEAD", self.url)
        assert head.status_code == 200 and head.headers["Cache-Control"] == "no-store", head.headers
        assert int(head.headers["Upload-Length"]) == len(self.content)
        return int(head.headers["Upload-Offset"])

    def append(self, offset, data, **headers):
        return self.ask("PATCH", self.url, data=data, Upload_Offset=offset,
                        Content_Type="application/offset+octet-stream", **headers)  # fmt: skip

    def send(self):
        """All of it, in pieces; what HEAD says is where it goes on. Gives the last answer."""
        third = len(self.content) // 3
        part = self.content[:third]
        digest = base64.b64encode(hashlib.sha1(part).digest()).decode()
        other = self.append(0, self.content[1 : third + 1], Upload_Checksum=f"sha1 {digest}")
        assert other.status_code == 460 and self.offset() == 0, other.text
        answer = self.append(0, part, Upload_Checksum=f"sha1 {digest}")
        assert answer.status_code == 204 and int(answer.headers["Upload-Offset"]) == third, answer.text
        wrong = self.append(0, part)
        self.miner.refused(wrong, 409, "offset_mismatch")
        yield self.offset()
        while (offset := self.offset()) < len(self.content):
            answer = self.append(offset, self.content[offset : offset + third])
            assert answer.status_code == 204, answer.text
        again = self.ask("HEAD", self.url)
        assert again.headers["X-Stored-Path"] == answer.headers["X-Stored-Path"]
        yield answer


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


def submit(miner, status, task, receipts):
    """The miner's file, by the road that the task names; gives the answer's fields."""
    block, uploads = status["block"], status["uploads"]
    if task["how"] == "form":
        stored = miner.submit(block, task["model_hash"], task["file"], uploads["submit"])
        assert stored.status_code == 200, stored.text
        return stored.json()
    upload = Resumable(miner, block, task["model_hash"], task["file"])
    upload.miner.refused(upload.ask("POST", miner.url + uploads["resumable"]), 400, "invalid_header")
    made = upload.create()
    assert made.status_code == 201, made.text
    sending = upload.send()
    come = next(sending)
    # The validator looks at what has come about once a second.
    for _ in range(100):
        receipt = miner.receipt(task["round"], block)
        if receipt["state"] == "receiving" and receipt["receiving"]["bytes"] == come:
            break
        time.sleep(0.1)
    receipts.append(receipt)
    headers = next(sending).headers
    stored = miner.session.get(upload.url, timeout=30).json()
    assert stored["stored_path"] == headers["X-Stored-Path"] and stored["sha256"] == headers["X-Content-SHA256"]
    return stored


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
    stored = submit(miner, status, task, receipts)
    assert sorted(stored) == ["bytes", "sha256", "status", "stored_path"] and stored["status"] == "ok", stored
    with open(task["file"], "rb") as file:
        assert (stored["bytes"], stored["sha256"]) == (size, hashlib.sha256(file.read()).hexdigest())
    miner.refused(miner.submit(block, task["model_hash"], task["file"], "/submit"), 409, "already_submitted")
    receipts.append(miner.receipt(round_, block))
    json.dump({"downloads": downloads, "stored": stored, "receipts": receipts}, sys.stdout)


if __name__ == "__main__":
    main(json.load(sys.stdin))
