"""What a TFDS folder in the RLDS layout says of itself: features.json, and some episodes of its first file."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from robovlms.data.rlds.features import STEPS, StepFeature, TFDSFolder, open_folder
from robovlms.data.rlds.steps import read_numbers, read_texts
from robovlms.data.rlds.tfrecord import parse_example, scan_records
from robovlms.errors import UserError
from robovlms.inspection.discovery.columns import choose_action, choose_state, put_together
from robovlms.inspection.discovery.folder import (
    MAX_EPISODES,
    Answer,
    Camera,
    Folder,
    Rows,
    Vector,
    ask,
    found,
    guess,
    tell,
    without_depth,
)

SEVEN = ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]


def describe_rlds(root: Path) -> Folder:
    """Return what a TFDS folder of episodes holds.

    Raises:
        FileNotFoundError, UserError: the folder cannot be read; names the file.
    """
    folder = open_folder(root)
    features = folder.features
    pictures, notes = without_depth(key for key, spec in features.items() if spec.is_picture)
    notes += [
        f"{key} has one channel, and policies see colours: left out" for key in pictures if _is_grey(features[key])
    ]
    cameras = [
        Camera(key, (spec.shape[0], spec.shape[1]) if min(spec.shape[:2]) > 0 else None)
        for key, spec in features.items()
        if key in pictures and not _is_grey(spec)
    ]
    columns = {key: spec.width for key, spec in features.items() if spec.is_numeric and not spec.is_picture}
    columns = {key: width for key, width in columns.items() if "embedding" not in key and not key.startswith("is_")}
    action = choose_action(columns, folder.path)
    states = {key: width for key, width in columns.items() if key.startswith("observation/")}
    state = choose_state(states, action)
    language, place, text = _language(folder)
    split, split_options = _splits(folder)
    rows, instructions = _rows(folder, split, action, state, place, text)
    seven = action.width == 7 and "+" not in action.key
    named = put_together(action, SEVEN if seven else None, "guess: as most data sets of RLDS order their 7 entries")
    return Folder(
        option="rlds",
        what="an RLDS data set (TFDS)",
        root=root,
        counts=f"{folder.name}; "
        + ", ".join(
            f"{name}: {sum(shard.num_records for shard in shards)} episodes" for name, shards in folder.splits.items()
        ),
        cameras=cameras,
        action=named if seven else put_together(action, None, "features.json, which names no entry"),
        state=put_together(state, None, "features.json, which names no entry") if state else None,
        rate=ask("how many actions a second were recorded? RLDS does not say"),
        rows=rows,
        instructions=instructions,
        options={"action_key": tell(action.key, action.choice or "features.json"), "language_key": language}
        | split_options,
        notes=notes,
    )


def _is_grey(spec: StepFeature) -> bool:
    return spec.shape[-1] == 1


def _language(folder: TFDSFolder) -> tuple[Answer, str, StepFeature]:
    """Return the key of the instruction, its place in a record and how it is written."""
    texts = {key: spec for key, spec in folder.features.items() if spec.is_text and not spec.is_picture}
    texts |= {key: spec for key, spec in folder.context.items() if spec.is_text}
    likely = [key for key in texts if "language" in key or "instruction" in key or key.endswith("task")]
    plain = [key for key in likely if not texts[key].is_codes] or likely
    if not plain:
        raise UserError(
            f"{folder.path} has no text that may be an instruction: its texts are {', '.join(texts) or 'none'}. Write "
            "the data config by hand: data=rlds data.language_key=<key>."
        )
    key = min(plain, key=lambda each: (each.rpartition("/")[2] != "language_instruction", len(each)))
    return found(key, "features.json"), *folder.find_text(key)


def _splits(folder: TFDSFolder) -> tuple[str, dict[str, Answer]]:
    train = "train" if "train" in folder.splits else next(iter(folder.splits), "train")
    options = {} if train == "train" else {"train_split": guess(train, "the first split of dataset_info.json")}
    held_out = next((name for name in ("val", "validation", "test") if name in folder.splits), None)
    if held_out not in (None, "val"):
        options["validation_split"] = found(held_out, "dataset_info.json")
    return train, options


def _rows(
    folder: TFDSFolder, split: str, action: Vector, state: Vector | None, place: str, text: StepFeature
) -> tuple[list[Rows], list[str]]:
    """Read the first episodes' numbers and instructions, without decoding a picture."""
    keys = [part.partition("[")[0] for vector in (action, state) if vector for part in vector.key.split("+")]
    rows, instructions = [], list[str]()
    path = folder.shards(split, "data.train_split")[0].path
    for record in islice(scan_records(path), MAX_EPISODES):
        if record.fault is not None:
            continue
        example = parse_example(record.payload, [*(STEPS + key for key in keys), place])
        columns = {key: read_numbers(folder.features[key], example[STEPS + key]).astype(np.float64) for key in keys}
        told = [np.concatenate([_part(columns, part) for part in vector.key.split("+")], axis=1) if vector else None
                for vector in (action, state)]  # fmt: skip
        assert told[0] is not None
        rows.append(Rows(told[0], told[1]))
        instructions += read_texts(text, example[place])[:1]
    return rows, list(dict.fromkeys(instructions))


def _part(columns: dict[str, np.ndarray], part: str) -> np.ndarray:
    key, _, place = part.partition("[")
    return columns[key][:, :1] if place else columns[key]
