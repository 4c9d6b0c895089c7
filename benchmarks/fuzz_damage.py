"""Ways to damage a valid file, by its format: bytes anywhere, or content behind checksums and compression."""

from __future__ import annotations

import io
import json
import random
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgpack
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from rlds_folder import record

VALUES = [0, 1, 7, 8, 0x0A, 0x7F, 0x80, 0xFF]
NUMBERS = [0, 1, -1, 2, 3, 255, 2**31, 2**62, -(2**62)]
WORDS = [
    -1,
    10**30,
    None,
    True,
    [],
    {},
    "",
    "-1",
    "../x",
    "\0",
    "{SPLIT}",
    "{video_key}",
    "zlib",
    "float64",
    1.5,
    float("inf"),
    float("nan"),
    "x" * 300,
]
ENTRIES = [None, True, -1, 2**63, 1e308, float("nan"), [], {}, "", b"", "x" * 300, [[]] * 9, [1, 2], b"|O", "<f8", 0]
Damage = Callable[[random.Random, bytes], bytes]


def damage_bytes(chance: random.Random, data: bytes) -> bytes:
    """Change, insert, delete, repeat or cut bytes in a few places."""
    result = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 8])):
        at, size = chance.randrange(len(result) + 1), chance.choice([1, 1, 2, 4, 8, 30])
        kind = chance.randrange(7)
        if kind == 0:
            result[at : at + 1] = bytes([chance.choice(VALUES)])
        elif kind == 1 and at < len(result):
            result[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            result[at:at] = chance.randbytes(size)
        elif kind == 3:
            del result[at : at + size]
        elif kind == 4:
            result[at:at] = result[at : at + size]
        elif kind == 5:
            result[at : at + size] = b"\xff" * (size - 1) + b"\x01"
        elif chance.random() < 0.2:
            del result[at:]
    return bytes(result)


def damage_json(chance: random.Random, data: bytes) -> bytes:
    """Put another value in some place of a JSON file, or damage its bytes."""
    kind = chance.random()
    if kind < 0.3:
        return damage_bytes(chance, data)
    if kind < 0.31:
        return b"[" * 10**5 + data
    content = json.loads(data)
    for _ in range(chance.choice([1, 1, 2])):
        place = content
        while isinstance(place, dict | list) and place:
            key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or chance.random() < 0.2:
                place[key] = chance.choice(WORDS)
                break
            place = place[key]
    return json.dumps(content).encode()


def damage_message(chance: random.Random, data: bytes) -> bytes:
    """Put another value in some place of a message, leave an entry out, or damage bytes: of a pickle those alone."""
    if data[:1] == b"\x80" or chance.random() < 0.5:
        return damage_bytes(chance, data)
    content = place = msgpack.unpackb(data, strict_map_key=False)
    while isinstance(place, dict | list) and place:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or chance.random() < 0.2:
            if isinstance(place, dict) and chance.random() < 0.3:
                del place[key]
            else:
                place[key] = chance.choice(ENTRIES)
            break
        place = place[key]
    return bytes(msgpack.packb(content))


def damage_lines(chance: random.Random, data: bytes) -> bytes:
    """Damage one line of JSON lines, leave it out or repeat it."""
    lines = data.splitlines(keepends=True)
    at = chance.randrange(len(lines))
    lines[at] = chance.choice([lambda: damage_json(chance, lines[at]) + b"\n", bytes, lambda: lines[at] * 2])()
    return b"".join(lines)


def damage_zip(chance: random.Random, data: bytes) -> bytes:
    """Damage a member and write its checksum anew, or damage the bytes of the whole file."""
    if chance.random() < 0.4:
        return damage_bytes(chance, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice(list(members))
    header = members[name][:128]  # of an array: most of what can go wrong is there
    members[name] = damage_bytes(chance, header) + members[name][128:]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for key, member in members.items():
            archive.writestr(key, member)
    return buffer.getvalue()


def damage_records(chance: random.Random, data: bytes) -> bytes:
    """Damage the payload of a TFRecord and write its checksum anew, or damage the bytes of the whole file."""
    if chance.random() < 0.4:
        return damage_bytes(chance, data)
    payloads, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        payloads.append(data[at + 12 : at + 12 + size])
        at += size + 16
    place = chance.randrange(len(payloads))
    payloads[place] = damage_bytes(chance, payloads[place])
    return b"".join(map(record, payloads))


def damage_table(chance: random.Random, data: bytes) -> bytes:
    """Put other values or another type into a column of a Parquet file, or damage its bytes."""
    if chance.random() < 0.5:
        return damage_bytes(chance, data)
    table = pq.read_table(io.BytesIO(data))
    name = chance.choice(table.column_names)
    rows = table[name].to_pylist()
    wild = NUMBERS if isinstance(rows[0], int) else WORDS
    kind = chance.randrange(5)
    if kind == 0:
        table = table.drop_columns([name])
    else:
        if kind == 1:
            rows = [chance.choice(wild)] * len(rows)
        elif kind == 2:
            rows = [[row] for row in rows]
        else:
            rows[chance.randrange(len(rows))] = chance.choice(wild)
        try:
            column = pa.array(rows)
            _write(pa.table({name: column}))
        except (pa.ArrowException, OverflowError):  # of mixed types: no file can hold it
            column = pa.array([repr(row) for row in rows])
        table = table.set_column(table.column_names.index(name), name, column)
    return _write(table)


def _write(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


BY_SUFFIX: dict[str, Damage] = {
    ".json": damage_json,
    ".jsonl": damage_lines,
    ".message": damage_message,
    ".npz": damage_zip,
    ".parquet": damage_table,
}


def damage(chance: random.Random, path: Path, data: bytes) -> bytes:
    """Damage the content of a file as its name asks."""
    way = damage_records if ".tfrecord" in path.name else BY_SUFFIX.get(path.suffix, damage_bytes)
    return way(chance, data)
