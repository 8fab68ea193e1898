"""The draw, from docs/data.md alone: makes and checks the vectors beside this file.

    pip install pyarrow zstandard tokenizers
    python reference.py make     # the shards anew (bytes depend on the writers' versions)
    python reference.py draw     # draws.json
    python reference.py check    # draws.json, against a draw of now
"""

import fnmatch
import gzip
import hashlib
import json
import pathlib
import struct
import sys

import pyarrow
import pyarrow.parquet
import tokenizers
import zstandard

HERE = pathlib.Path(__file__).parent
TOKENIZER = HERE / "../../../../tests/vectors/numerics/tokenizer.json"
MINIMUM, SHARDS = 16, 2
# As config.yaml has them: folder, pattern, text field, millionths.
SOURCES = [
    ("books", "*", "text", 1_000_000),
    ("web", "en/*.json*", "body", 250_000),
    ("notes", "*", "text", 1_500_000),
]


def blake(*parts):
    return hashlib.blake2b(b"".join(parts), digest_size=32).digest()


class Chance:
    """64-bit words of a ChaCha20 stream with a 64-bit counter and a nonce of zeros."""

    def __init__(self, seed):
        self.key, self.block, self.words = struct.unpack("<8I", seed), 0, []

    def below(self, n):
        if not self.words:
            self.words = self.next_block()
        low, high = self.words.pop(0), self.words.pop(0)
        return (low | high << 32) * n >> 64

    def next_block(self):
        start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *self.key]
        start += [self.block & 0xFFFFFFFF, self.block >> 32, 0, 0]
        self.block += 1
        x = list(start)

        def quarter(a, b, c, d):
            for p, q, r, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                x[p] = (x[p] + x[q]) & 0xFFFFFFFF
                mixed = x[r] ^ x[p]
                x[r] = (mixed << turn | mixed >> (32 - turn)) & 0xFFFFFFFF

        for _ in range(10):
            for i in range(4):
                quarter(i, 4 + i, 8 + i, 12 + i)
            for i in range(4):
                quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
        return [(a + b) & 0xFFFFFFFF for a, b in zip(x, start)]


def records(path, field):
    """Number and text of every record that has one."""
    name = path.name
    if name.endswith(".parquet"):
        column = pyarrow.parquet.read_table(path, columns=[field])[field].to_pylist()
        return [(n, text) for n, text in enumerate(column) if text is not None]
    if name.endswith(".txt"):
        return [(0, path.read_text())]
    data = path.read_bytes()
    if name.endswith(".gz"):
        data = gzip.decompress(data)
    if name.endswith(".zst"):
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    lines = [(n, line) for n, line in enumerate(data.split(b"\n")) if line.strip()]
    texts = [(n, json.loads(line)[field]) for n, line in lines]
    return [(n, text) for n, text in texts if text is not None]


ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst", ".txt")


def shards(folder, pattern):
    root = HERE / folder
    paths = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
    chosen = [p for p in paths if p.endswith(ENDINGS) and fnmatch.fnmatchcase(p, pattern)]
    return sorted(chosen, key=str.encode)


def description():
    text = f"connito-data 1\nminimum_text_length {MINIMUM}\nshards_per_round {SHARDS}\n"
    for folder, pattern, field, weight in SOURCES:
        text += f"source folder\nweight {weight}\ntext_field {field}\n"
        for path in shards(folder, pattern):
            data = (HERE / folder / path).read_bytes()
            text += f"shard blake2b:{blake(data).hex()} {len(data)} {path}\n"
    return text


def draw(seed, shard_seed, batches, size, length, pad):
    tokenizer = tokenizers.Tokenizer.from_file(str(TOKENIZER))
    chance, ready = Chance(blake(b"shards", shard_seed)), []
    for folder, pattern, field, _ in SOURCES:
        paths = shards(folder, pattern)
        count = min(SHARDS, len(paths))
        for i in range(count):
            j = i + chance.below(len(paths) - i)
            paths[i], paths[j] = paths[j], paths[i]
        texts = []
        for path in paths[:count]:
            long = [(n, t) for n, t in records(HERE / folder / path, field) if len(t.encode()) >= MINIMUM]
            texts.append((path, long))
        ready.append([(path, long) for path, long in texts if long])

    chance, rows, picks = Chance(seed), [], []
    total = sum(weight for *_, weight in SOURCES)
    while len(rows) < batches * size:
        w, source = chance.below(total), 0
        while w >= SOURCES[source][3]:
            w, source = w - SOURCES[source][3], source + 1
        while True:
            path, texts = ready[source][chance.below(len(ready[source]))]
            number, text = texts[chance.below(len(texts))]
            tokens = tokenizer.encode(text, add_special_tokens=False).ids
            start = chance.below(len(tokens) - length + 1) if len(tokens) > length else 0
            row = tokens[start : start + length]
            if len(row) >= 2 and row not in rows:
                break
        rows.append(row)
        picks.append({"source": source, "shard": path, "row": number, "start": start})

    hashed = b""
    for n in range(batches):
        batch = rows[n * size : (n + 1) * size]
        ids = [row + [pad] * (length - len(row)) for row in batch]
        labels = [row + [-100] * (length - len(row)) for row in batch]
        flat = [number for kind in (ids, labels) for row in kind for number in row]
        hashed += struct.pack(f"<QQ{len(flat)}q", size, length, *flat)
    return {
        "seed": seed.hex(), "shards": shard_seed.hex(), "batches": batches, "size": size,
        "length": length, "pad": pad, "digest": blake(hashed).hex(), "picks": picks, "rows": rows,
    }


def draws():
    hotkey = "5C4hrfjw9DjXZTzV3MwzrrAr9P1MJhSrvWGWqi1eSuyUpnhM"
    own, own_shards = blake(f"own-data:{hotkey}:7".encode()), blake(b"own-shards:7")
    held_out = blake(b"held-out")
    cases = [
        (bytes([7] * 32), bytes([7] * 32), 3, 4, 24, 0),
        (bytes(range(32)), bytes(range(32)), 2, 5, 9, 3),
        (held_out, held_out, 2, 2, 24, 0),
        (own, own_shards, 2, 2, 24, 0),
    ]
    return {
        "minimum_text_length": MINIMUM, "shards_per_round": SHARDS, "own": {"hotkey": hotkey, "version": 7},
        "description": description(), "sources_digest": blake(description().encode()).hex(),
        "draws": [draw(*case) for case in cases],
    }


def make():
    def text(kind, n):
        return f"{kind} {n}: " + " ".join(f"{n * 7 % 50 + m} plus {m} equals {n * 7 % 50 + 2 * m}." for m in range(1 + n % 9))

    def put(path, data):
        path = HERE / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def lines(kind, field, count):
        rows = [json.dumps({"id": n, field: text(kind, n) if n % 11 else None}) for n in range(count)]
        return "\n".join(rows[:5] + ["", '{"%s": "short"}' % field] + rows[5:]).encode()

    def table(path, count, **options):
        values = [None if n % 13 == 5 else "tiny" if n % 7 == 3 else text(path, n) for n in range(count)]
        path = HERE / path
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {"id": list(range(count)), "text": values}
        pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)

    table("books/snappy.parquet", 40, compression="snappy", row_group_size=16)
    table("books/zstd.parquet", 30, compression="zstd", data_page_version="2.0", use_dictionary=False)
    table("books/gzip.parquet", 30, compression="gzip", data_page_size=256)
    put("web/en/1.json.gz", gzip.compress(lines("one", "body", 25), mtime=0))
    put("web/en/2.jsonl", lines("two", "body", 25))
    put("web/en/3.jsonl.zst", zstandard.ZstdCompressor().compress(lines("three", "body", 25)))
    put("web/de/4.jsonl", lines("vier", "body", 25))
    put("web/en/README.md", b"no shard\n")
    put("notes/first.txt", " ".join(text("note", n) for n in range(40)).encode())
    put("notes/greetings.txt", "Grüße, 你好. ".encode() * 30)
    put("notes/void.txt", b"too short")


if __name__ == "__main__":
    expected = HERE / "draws.json"
    match sys.argv[1:]:
        case ["make"]:
            make()
        case ["draw"]:
            expected.write_text(json.dumps(draws(), indent=1, ensure_ascii=False) + "\n")
        case ["check"]:
            assert json.loads(expected.read_text()) == draws(), "draws.json is another draw"
            print("as expected")
        case _:
            sys.exit(__doc__)
