"""Write small TFDS folders in the RLDS layout: the wire format by hand, checksums included."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from robovlms.data.rlds.tfrecord import masked_crc32c

FLOAT7 = {"tensor": {"shape": {"dimensions": ["7"]}, "dtype": "float32", "encoding": "none"}}
IMAGE = {"image": {"shape": {"dimensions": ["4", "6", "3"]}, "dtype": "uint8", "encodingFormat": "png"}}
TEXT = {"text": {}}
SPECS = {"action": FLOAT7, "observation": {"image_0": IMAGE, "state": FLOAT7}, "language_instruction": TEXT}


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(values: list[bytes] | np.ndarray) -> bytes:
    if isinstance(values, list):
        return field(1, b"".join(field(1, value) for value in values))
    if values.dtype.kind == "f":
        return field(2, field(1, values.astype("<f4").tobytes()))
    return field(3, field(1, b"".join(varint(int(value)) for value in values.ravel())))


def example(features: dict[str, list[bytes] | np.ndarray]) -> bytes:
    return field(1, b"".join(field(1, field(1, k.encode()) + field(2, feature(v))) for k, v in features.items()))


def record(payload: bytes) -> bytes:
    length = len(payload).to_bytes(8, "little")
    checksums = [masked_crc32c(part).to_bytes(4, "little") for part in (length, payload)]
    return length + checksums[0] + payload + checksums[1]


def png(value: int, size: tuple[int, int] = (4, 6), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size[::-1], (value,) * 3 if mode == "RGB" else value).save(buffer, "PNG")
    return buffer.getvalue()


def node(specs: dict) -> dict:
    """Return features.json's form of nested {name: spec}; a spec has the one key tensor, image, text or sequence."""
    kinds = {"tensor", "image", "text", "sequence"}
    if len(specs) == 1 and kinds & set(specs) and not kinds & set(next(iter(specs.values()))):
        return specs
    return {"featuresDict": {"features": {name: node(spec) for name, spec in specs.items()}}}


def features_json(specs: dict, context: dict | None = None) -> str:
    features = {"steps": {"sequence": {"feature": node(specs)}}}
    features |= {name: node(spec) for name, spec in (context or {}).items()}
    return json.dumps({"featuresDict": {"features": features}})


def episode(number: int, length: int, text: str = "pick") -> dict[str, list[bytes] | np.ndarray]:
    """Entry j of action i of episode e is 100 e + 10 i + j, the state a tenth of it, the picture 10 i + e."""
    actions = 100 * number + 10 * np.arange(length)[:, None] + np.arange(7)
    return {
        "steps/action": actions.astype(np.float32),
        "steps/observation/state": actions.astype(np.float32) / 10,
        "steps/observation/image_0": [png(10 * i + number) for i in range(length)],
        "steps/language_instruction": [text.encode()] * length,
    }


def make_rlds_folder(
    root: Path,
    splits: dict[str, list[list[dict[str, list[bytes] | np.ndarray]]]],
    specs: dict | None = None,
    *,
    name: str = "toy",
    context: dict | None = None,
    **info: object,
) -> Path:
    """Write {split: [episodes of each shard]} into <root>/1.0.0, and give that folder.

    `specs` are the features of a step, `context` those of an episode.
    """
    folder = root / "1.0.0"
    folder.mkdir(parents=True)
    listed = []
    for split, shards in splits.items():
        for i, episodes in enumerate(shards):
            file = folder / f"{name}-{split}.tfrecord-{i:05d}-of-{len(shards):05d}"
            file.write_bytes(b"".join(record(example(e)) for e in episodes))
        listed.append({"name": split, "shardLengths": [str(len(episodes)) for episodes in shards]})
    (folder / "features.json").write_text(features_json(SPECS if specs is None else specs, context))
    content = {"name": name, "fileFormat": "tfrecord", "splits": listed, **info}
    (folder / "dataset_info.json").write_text(json.dumps(content))
    return folder
