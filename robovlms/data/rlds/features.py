"""A TFDS folder's two JSON files: which keys a step has and how they are written, which shards a split has.

    bridge_dataset/1.0.0/dataset_info.json    name, splits with the number of records of every shard
    bridge_dataset/1.0.0/features.json        the features of an episode; `steps` is a sequence of those of a step
    bridge_dataset/1.0.0/bridge_dataset-train.tfrecord-00000-of-00001

Source: github.com/tensorflow/datasets core/proto/{dataset_info,feature}.proto, core/utils/shard_utils.py,
core/features/.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from robovlms.errors import UserError
from robovlms.files import refuse_pointer
from robovlms.registry import nearest

INFO, FEATURES = "dataset_info.json", "features.json"
STEPS = "steps/"  # before the keys of a step, in a record
_MAX_JSON = 2**24  # bytes; the largest of Open X-Embodiment has 10**5
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_NUMERIC = re.compile(r"(u?int(8|16|32|64)|float(16|32|64)|bool)")
_PICTURE_CHANNELS = (1, 3, 4)


class StepFeature(NamedTuple):
    """How a key of a step is written."""

    kind: str  # tensor, image or text
    dtype: str  # numpy's name, or string
    shape: tuple[int, ...]  # -1 where it varies
    encoding: str  # of a tensor: none, bytes, zlib

    @property
    def width(self) -> int:
        """Count the entries that a step has."""
        return math.prod(self.shape)

    @property
    def is_picture(self) -> bool:
        """Say whether a camera's pictures are written so."""
        has_pixels = len(self.shape) == 3 and self.shape[-1] in (-1, *_PICTURE_CHANNELS)
        return self.dtype == "uint8" and has_pixels and self.kind in ("image", "tensor")

    @property
    def is_numeric(self) -> bool:
        """Say whether steps have numbers here, as many in all."""
        return self.kind == "tensor" and bool(_NUMERIC.fullmatch(self.dtype)) and min(self.shape, default=1) > 0

    @property
    def is_text(self) -> bool:
        """Say whether steps have a text here."""
        is_string = self.kind == "tensor" and self.dtype == "string" and self.shape in ((), (1,))
        return self.kind == "text" or is_string or self.is_codes

    @property
    def is_codes(self) -> bool:
        """Say whether a vector may be a text: its UTF-8 bytes, filled up with zeros (language_table)."""
        is_vector = self.kind == "tensor" and len(self.shape) == 1 and self.shape[0] > 0
        return is_vector and self.dtype in ("uint8", "int32")

    @property
    def is_flag(self) -> bool:
        """Say whether it is one number that may say yes or no."""
        return self.kind == "tensor" and self.shape in ((), (1,)) and bool(re.fullmatch(r"bool|u?int\d+", self.dtype))


class Shard(NamedTuple):
    """A file and how many records it should have."""

    path: Path
    num_records: int


@dataclass(frozen=True)
class TFDSFolder:
    """The version folder of a data set, its splits and the keys of its steps."""

    path: Path
    name: str
    splits: dict[str, list[Shard]]
    features: dict[str, StepFeature]  # by key of a step, e.g. observation/image_0
    context: dict[str, StepFeature]  # by key of an episode, e.g. episode_metadata/language_instruction

    def find(self, key: str, known: list[str], option: str, what: str) -> str:
        """Return the key of a step that an option means; `observation/` may be left out.

        Raises:
            UserError: there is none; lists those that there are.
        """
        for name in (key, f"observation/{key}"):
            if name in known:
                return name
        raise UserError(
            f"{option}={key} is not {what} of the steps of {self.path}.{nearest(key, known)} "
            f"It has: {', '.join(known) or 'none'}. Set {option}=<key>."
        )

    def find_flag(self, key: str | None) -> str | None:
        """Return the key of an episode that `data.success_key` means; None where none is asked for.

        Raises:
            UserError: there is none; lists those that there are.
        """
        flags = [name for name, spec in self.context.items() if spec.is_flag]
        if key is not None and key not in flags:
            raise UserError(
                f"data.success_key={key} is not a flag of the episodes of {self.path}.{nearest(key, flags)} "
                f"It has: {', '.join(flags) or 'none'}. Set data.success_key=<key>, or null to keep all episodes."
            )
        return key

    def find_text(self, key: str) -> tuple[str, StepFeature]:
        """Return the place in a record of the text that `data.language_key` means: of the steps, or of the episode.

        `observation/` and `episode_metadata/` may be left out.

        Raises:
            UserError: there is none; lists those that there are.
        """
        steps = {f"{STEPS}{name}": spec for name, spec in self.features.items() if spec.is_text}
        places = steps | {name: spec for name, spec in self.context.items() if spec.is_text}
        for name in (f"{STEPS}{key}", f"{STEPS}observation/{key}", key, f"episode_metadata/{key}"):
            if name in places:
                return name, places[name]
        known = [name.removeprefix(STEPS) for name in places]
        raise UserError(
            f"data.language_key={key} is not a text of the steps or episodes of {self.path}.{nearest(key, known)} "
            f"It has: {', '.join(known) or 'none'}. Set data.language_key=<key>."
        )

    def shards(self, split: str, option: str) -> list[Shard]:
        """Return the files of a split.

        Raises:
            UserError: there is no such split.
        """
        if split not in self.splits:
            raise UserError(
                f"{option}={split} is not a split of {self.path}.{nearest(split, self.splits)} "
                f"It has: {', '.join(self.splits) or 'none'}."
            )
        return self.splits[split]


def open_folder(root: Path) -> TFDSFolder:
    """Read the JSON files of a version folder, or of the only version in `root`.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks one of the files.
        UserError: there are several versions, or a file is not what TFDS writes.
    """
    folder = _version_folder(root)
    info = _read_json(folder / INFO)
    name, splits = _read_splits(folder, info)
    return TFDSFolder(folder, name, splits, read_features(folder / FEATURES), _read_context(folder / FEATURES))


def _version_folder(root: Path) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"data.root={root} is not a folder: give one with {INFO}, e.g. bridge_dataset/1.0.0.")
    if (root / INFO).is_file():
        return root
    versions = sorted(path.parent for path in root.glob(f"*/{INFO}"))
    if len(versions) == 1:
        return versions[0]
    if versions:
        raise UserError(f"data.root={root} has several versions: set it to one of {', '.join(map(str, versions))}.")
    below = sorted(str(path.parent) for path in root.glob(f"*/*/{INFO}"))[:8]
    hint = f"set it to {' or '.join(below)}" if below else "it is not a TFDS data set, or its download is incomplete"
    raise FileNotFoundError(f"data.root={root} has no {INFO}, nor has a folder in it: {hint}.")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: complete the download of this TFDS folder.")
    if path.stat().st_size > _MAX_JSON:
        raise UserError(f"{path} has {path.stat().st_size} bytes, far more than TFDS writes.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        refuse_pointer(path)
        raise UserError(f"{path} is not valid JSON ({error}): download it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object: download it again.")
    return content


def _read_splits(folder: Path, info: dict[str, Any]) -> tuple[str, dict[str, list[Shard]]]:
    path, name, form = folder / INFO, info.get("name"), info.get("fileFormat", "tfrecord")
    if form != "tfrecord":
        raise UserError(f"{path}: fileFormat={form!r}, but only tfrecord is read: prepare the data set again with it.")
    if not isinstance(name, str) or not isinstance(info.get("splits"), list):
        raise UserError(f"{path} has no name or no list of splits: download it again.")
    splits: dict[str, list[Shard]] = {}
    for split in info["splits"]:
        if not isinstance(split, dict) or not isinstance(split.get("name"), str):
            raise UserError(f"{path}: a split has no name: download it again.")
        lengths = split.get("shardLengths")
        if not isinstance(lengths, list):
            raise UserError(f"{path}: split {split['name']!r} has no shardLengths: download it again.")
        words = {"DATASET": name, "SPLIT": split["name"], "FILEFORMAT": form, "NUM_SHARDS": f"{len(lengths):05d}"}
        template = split.get("filepathTemplate") or _TEMPLATE
        splits[split["name"]] = [
            Shard(folder / _file_name(path, template, words, i), _natural(path, "shardLengths", length))
            for i, length in enumerate(lengths)
        ]
    return name, splits


def _file_name(path: Path, template: Any, words: dict[str, str], index: int) -> str:
    words = words | {"SHARD_INDEX": f"{index:05d}", "SHARD_X_OF_Y": f"{index:05d}-of-{words['NUM_SHARDS']}"}
    name = re.sub(r"\{([A-Z_]+)\}", lambda match: words.get(match[1], match[0]), str(template))
    if re.search(r"[/\\\0{}]", name) or name in ("", ".", ".."):
        raise UserError(f"{path}: filepathTemplate={template!r} gives {name!r}, which is not a file of this folder.")
    return name


def _natural(path: Path, key: str, value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,12}", str(value)):
        raise UserError(f"{path}: {key} has {value!r}, expected a number of at most 12 digits.")
    return int(str(value))


def read_features(path: Path) -> dict[str, StepFeature]:
    """Return the tensors, images and texts of a step by key; sequences within a step and other kinds are left out.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not what TFDS writes.
    """
    steps = _children(_read_json(path)).get("steps")
    sequence = steps.get("sequence") if isinstance(steps, dict) else None
    step = sequence.get("feature") if isinstance(sequence, dict) else None
    if not isinstance(step, dict) or not _children(step):
        raise UserError(f"{path} has no 'steps' with features: this is not a data set of episodes (RLDS).")
    found: dict[str, StepFeature] = {}
    _walk(path, step, "", found)
    return found


def _read_context(path: Path) -> dict[str, StepFeature]:
    found: dict[str, StepFeature] = {}
    for name, child in _children(_read_json(path)).items():
        if name != "steps":
            _walk(path, child, name, found)
    return found


def _children(node: dict[str, Any]) -> dict[str, Any]:
    group = node.get("featuresDict")
    features = group.get("features") if isinstance(group, dict) else None
    return features if isinstance(features, dict) else {}


def _walk(path: Path, node: Any, key: str, found: dict[str, StepFeature]) -> None:
    if not isinstance(node, dict):
        raise UserError(f"{path}: feature {key!r} is not a JSON object: download it again.")
    for name, child in _children(node).items():
        _walk(path, child, f"{key}/{name}" if key else name, found)
    for kind in ("tensor", "image", "text"):
        if kind in node and key:
            found[key] = _leaf(path, key, kind, node[kind])


def _leaf(path: Path, key: str, kind: str, value: Any) -> StepFeature:
    if not isinstance(value, dict):
        raise UserError(f"{path}: feature {key!r} is not described by a JSON object: download it again.")
    shape = value.get("shape") or {}
    dimensions = shape.get("dimensions", []) if isinstance(shape, dict) else None
    if not isinstance(dimensions, list):
        raise UserError(f"{path}: feature {key!r} has the shape {shape!r}: download it again.")
    sizes = tuple(-1 if str(size) in ("-1", "None") else _natural(path, key, size) for size in dimensions)
    default = {"image": "uint8", "text": "string", "tensor": ""}[kind]
    dtype, encoding = value.get("dtype") or default, value.get("encoding") or "none"
    return StepFeature(kind, str(dtype), sizes, str(encoding).lower())
