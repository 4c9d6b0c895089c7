"""Damage valid files at random and read them: anything but ValueError and OSError is a finding.

    nice -n 10 python benchmarks/fuzz_readers.py --parser example --minutes 5

Reports inputs a second, how many were refused, and every kind of finding once, with the input that shows it (kept in
--keep). An input that takes longer than 10 s or more than 4 GB is a finding, too. Another parser is a line of PARSERS.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from rlds_folder import SPECS, episode, example, features_json, record

from robovlms.data.rlds_features import StepFeature, open_folder, read_features
from robovlms.data.rlds_steps import read_numbers, read_pictures, read_text
from robovlms.data.tfrecord import Feature, parse_example, scan_records

SECONDS, BYTES = 10, 4 * 2**30
STEPS = 3
EXAMPLE = {
    **episode(1, STEPS, "lift the cup"),
    "steps/count": np.array([1, -1, 2**40], np.int64),
    "steps/raw": np.arange(STEPS * 4 * 6 * 3).reshape(STEPS, 4, 6, 3) % 256,
}
VALUES = [0, 1, 7, 8, 0x0A, 0x7F, 0x80, 0xFF]
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
    "zlib",
    "float64",
    1.5,
    float("inf"),
    "x" * 300,
]


class Parser(NamedTuple):
    """Valid inputs, what reads one, and how it is damaged."""

    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], None]
    damage: Callable[[random.Random, bytes], bytes]


def read_records(data: bytes, folder: Path) -> None:
    """Scan a TFRecord file."""
    path = folder / "records"
    path.write_bytes(data)
    written = {found.payload for found in scan_records(path) if found.fault is None}
    if written - {b"first", b"", example(EXAMPLE), example(EXAMPLE) * 20}:
        raise AssertionError("a payload that was not written passed its checksum")


def read_example(data: bytes, _: Path) -> None:
    """Parse an Example and decode each of its lists in every way."""
    vector, scalar = StepFeature("tensor", "float32", (7,), "none"), StepFeature("tensor", "int64", (), "none")
    picture, raw = StepFeature("image", "uint8", (4, 6, 3), "none"), StepFeature("tensor", "uint8", (4, 6, 3), "none")
    packed = StepFeature("tensor", "uint8", (4, 6, 3), "zlib")
    steps = np.arange(STEPS)
    ways: list[Callable[[Feature], object]] = [
        lambda found: read_text(StepFeature("text", "string", (), "none"), found),
        lambda found: read_text(StepFeature("tensor", "int32", (8,), "none"), found),
        lambda found: read_numbers(vector, found),
        lambda found: read_numbers(scalar, found),
        lambda found: read_pictures(picture, found, steps, STEPS),
        lambda found: read_pictures(raw, found, steps, STEPS),
        lambda found: read_pictures(packed, found, steps, STEPS),
    ]
    for found in parse_example(data, EXAMPLE).values():
        for way in ways:
            try:
                way(found)
            except ValueError:
                continue


def read_features_file(data: bytes, folder: Path) -> None:
    """Read a features.json."""
    (folder / "features.json").write_bytes(data)
    for spec in read_features(folder / "features.json").values():
        _ = spec.is_picture, spec.is_numeric, spec.is_text, spec.width


def read_info_file(data: bytes, folder: Path) -> None:
    """Read a dataset_info.json."""
    (folder / "features.json").write_text(features_json(SPECS))
    (folder / "dataset_info.json").write_bytes(data)
    for shards in open_folder(folder).splits.values():
        if any(shard.path.parent != folder for shard in shards):
            raise AssertionError("a shard lies outside the folder")


def info_json() -> bytes:
    """Give a valid dataset_info.json."""
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    split = {"name": "train", "shardLengths": ["3", "2"], "filepathTemplate": template}
    return json.dumps({"name": "toy", "fileFormat": "tfrecord", "splits": [split]}).encode()


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
    if chance.random() < 0.3:
        return damage_bytes(chance, data)
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


PARSERS: dict[str, Parser] = {
    "tfrecord": Parser(
        lambda: [record(b"first") + record(b"") + record(example(EXAMPLE)), record(example(EXAMPLE) * 20)],
        read_records,
        damage_bytes,
    ),
    "example": Parser(lambda: [example(EXAMPLE)], read_example, damage_bytes),
    "features": Parser(lambda: [features_json(SPECS).encode()], read_features_file, damage_json),
    "info": Parser(lambda: [info_json()], read_info_file, damage_json),
}


def fuzz(parser: Parser, seconds: float, seed: int, keep: Path) -> tuple[int, int, list[str]]:
    """Give the number of inputs, of those refused, and the findings."""
    chance, seeds = random.Random(seed), parser.seeds()
    findings: dict[str, str] = {}
    count = refused = 0
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        for valid in seeds:
            parser.read(valid, Path(folder))
        while time.monotonic() < end:
            data = parser.damage(chance, chance.choice(seeds))
            count += 1
            signal.alarm(SECONDS)
            try:
                parser.read(data, Path(folder))
            except (ValueError, OSError):
                refused += 1
            except Exception as error:  # this is what is looked for
                place = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"
                if kind not in findings:
                    file = keep / f"finding{len(findings)}"
                    file.write_bytes(data)
                    findings[kind] = f"{kind}, input {count}, kept as {file}"
            finally:
                signal.alarm(0)
    return count, refused, list(findings.values())


class TooSlowError(Exception):
    """An input took longer than it may."""


def too_slow(_: int, __: FrameType | None) -> None:
    """Stop reading an input."""
    raise TooSlowError(f"longer than {SECONDS} s")


def main() -> None:
    """Run and report; fails if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parser", choices=list(PARSERS), required=True)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=None)
    args = parser.parse_args()
    keep = args.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    keep.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGALRM, too_slow)
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    count, refused, findings = fuzz(PARSERS[args.parser], 60 * args.minutes, args.seed, keep)
    print(f"{args.parser}: {count} inputs in {args.minutes:g} min, {refused} refused, {len(findings)} findings")
    for finding in findings:
        print(f"  {finding}")
    if findings:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
