"""What a CALVIN split folder says about itself before a frame is opened: its language segments and which frames exist.

Source: github.com/mees/calvin dataset/README.md.
"""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from robovlms.config import CalvinDataConfig
from robovlms.data.numpy_files import read_pickled_npy

logger = logging.getLogger(__name__)

ANNOTATIONS = "lang_annotations/auto_lang_ann.npy"


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A described stretch of frames `start` ... `end`, both included, of which `end` itself is only ever padding."""

    start: int
    end: int
    task: str
    instruction: str

    @property
    def length(self) -> int:
        """Frames that may be observed and whose actions count."""
        return self.end - self.start

    def __str__(self) -> str:
        return f"frames {self.start}-{self.end} ({self.instruction!r})"


def read_segments(folder: Path) -> list[Segment]:
    """Give the language segments of a split folder, in the file's order.

    Raises:
        FileNotFoundError: there is no annotation file.
        ValueError: it is not what CALVIN writes, or lists no segment.
    """
    path = folder / ANNOTATIONS
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: only CALVIN splits with language annotations can be trained on."
        )
    content = read_pickled_npy(path)
    try:
        texts, tasks, ranges = content["language"]["ann"], content["language"]["task"], content["info"]["indx"]
        bounds = np.asarray(ranges)
        if not len(texts) == len(tasks) == len(bounds):
            raise ValueError(f"{len(texts)} instructions, {len(tasks)} tasks and {len(bounds)} index ranges")
        if len(bounds) and (bounds.ndim != 2 or bounds.shape[1] != 2 or bounds.dtype.kind not in "iu"):
            raise ValueError(
                f"index ranges of shape {bounds.shape} and type {bounds.dtype}, not pairs of whole numbers"
            )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must hold language.ann, language.task and info.indx of equal length: {error}"
        ) from error
    if not len(bounds):
        raise ValueError(f"{path} lists no segment: set data.root to a data set with language annotations.")
    rows = zip(bounds.tolist(), tasks, texts, strict=True)
    return [Segment(start=s, end=e, task=str(task), instruction=str(text)) for (s, e), task, text in rows]


def split_folder(config: CalvinDataConfig, split: str) -> Path:
    """Give the folder of a split, or say which `data.root` would have one."""
    names = {"train": config.train_split, "validation": config.validation_split}
    if split not in names:
        raise ValueError(f"split={split!r} does not exist: choose 'train' or 'validation'.")
    root, name = Path(config.root).expanduser(), names[split]
    if (root / name).is_dir():
        return root / name
    if not root.is_dir():
        raise FileNotFoundError(
            f"data.root={config.root} is not a folder: download a CALVIN data set (github.com/mees/calvin, dataset/) "
            "and set data.root to it, e.g. data.root=<downloads>/task_ABC_D."
        )
    if (root / ANNOTATIONS).is_file():
        hint = f"It is itself a split: set data.root={root.resolve().parent}."
    elif found := sorted(str(path.parent) for path in root.glob(f"*/{name}") if path.is_dir()):
        hint = f"It holds whole data sets: set data.root={' or '.join(found)}."
    else:
        holds = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        hint = f"It holds {holds}. Set data.root to the folder above '{name}', or change data.{split}_split."
    raise FileNotFoundError(f"data.root={config.root} has no folder '{name}'. {hint}")


def select_segments(segments: list[Segment], config: CalvinDataConfig) -> list[Segment]:
    """Keep the segments of `data.few_shot_file`, then `data.fraction` of what is left."""
    if config.few_shot_file is not None:
        listed = _read_few_shot(Path(config.few_shot_file).expanduser())
        segments = [segment for segment in segments if (segment.start, segment.end) in listed]
        absent = len(listed - {(segment.start, segment.end) for segment in segments})
        if not segments:
            raise ValueError(
                f"none of the {len(listed)} segments of data.few_shot_file={config.few_shot_file} is here."
            )
        if absent:
            logger.warning("%d of %d segments of data.few_shot_file are not in %s", absent, len(listed), config.root)
    if not 0 < config.fraction <= 1:
        raise ValueError(f"data.fraction={config.fraction} must be above 0 and at most 1.")
    return [segments[i] for i in spread(len(segments), max(1, round(config.fraction * len(segments))))]


def _read_few_shot(path: Path) -> set[tuple[int, int]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"data.few_shot_file={path} does not exist: give a JSON file {{task: [[start, end], ...]}}."
        )
    try:
        tasks: dict[str, list[Any]] = json.loads(path.read_text())
        return {(int(start), int(end)) for ranges in tasks.values() for start, end in ranges}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"data.few_shot_file={path} is not JSON of {{task: [[start, end], ...]}}: {error}") from error


def index_faults(segments: list[Segment], folder: Path) -> dict[int, Exception]:
    """Give, by segment number, what the folder's listing already shows to be wrong; no file is opened."""
    present = _frames_on_disk(folder)
    starts, ends = (np.array([getattr(segment, name) for segment in segments]) for name in ("start", "end"))
    lefts, rights = np.searchsorted(present, starts, side="left"), np.searchsorted(present, ends, side="right")
    faults: dict[int, Exception] = {}
    for number in np.flatnonzero((ends < starts) | (rights - lefts != ends - starts + 1)).tolist():
        segment = segments[number]
        told = f"{folder / ANNOTATIONS}: segment {number}, {segment},"
        if segment.end < segment.start:
            faults[number] = ValueError(f"{told} ends before it starts. Set data.skip_bad=true to drop such segments.")
            continue
        missing = np.setdiff1d(np.arange(segment.start, segment.end + 1), present[lefts[number] : rights[number]])
        faults[number] = FileNotFoundError(
            f"{told} lacks {len(missing)} frames, the first being episode_{missing[0]:07d}.npz: complete the download, "
            "or set data.skip_bad=true to drop such segments."
        )
    return faults


def _frames_on_disk(folder: Path) -> Int64[np.ndarray, "f"]:
    pattern = re.compile(r"episode_(\d{7})\.npz")
    with os.scandir(folder) as entries:
        frames = [int(match[1]) for entry in entries if (match := pattern.fullmatch(entry.name))]
    return np.sort(np.array(frames, dtype=np.int64))


def drop_segments(segments: list[Segment], faults: dict[int, Exception], folder: Path) -> list[Segment]:
    """Leave out the faulty segments, with one warning that counts them.

    Raises:
        ValueError: nothing is left.
    """
    kept = [segment for number, segment in enumerate(segments) if number not in faults]
    if faults:
        first = faults[min(faults)]
        if not kept:
            raise ValueError(f"all {len(segments)} segments of {folder} are bad, the first because: {first}")
        logger.warning(
            "data.skip_bad: dropped %d of %d segments, the first because: %s", len(faults), len(segments), first
        )
    return kept


def spread(total: int, count: int) -> Int64[np.ndarray, "_count"]:
    """Give `count` of the numbers below `total`, evenly spread and beginning with 0."""
    return np.arange(count) * total // max(count, 1)
