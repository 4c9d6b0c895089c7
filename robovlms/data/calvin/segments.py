"""What a CALVIN split folder says about itself before a frame is opened: its language segments and which frames exist.

Source: github.com/mees/calvin dataset/README.md.
"""

from __future__ import annotations

import json
import logging
import os
import re
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
from jaxtyping import Int64

from robovlms.data.calvin.schema import CalvinDataConfig
from robovlms.data.files.npz import read_npy, read_pickled_npy
from robovlms.data.selection import EpisodeSelection
from robovlms.data.splits import check_split, evenly_spaced
from robovlms.errors import UserError
from robovlms.files import refuse_pointer
from robovlms.registry import nearest

logger = logging.getLogger(__name__)

ANNOTATIONS = "auto_lang_ann.npy"  # in lang_annotations, lang_clip_resnet50, ...: the same texts, other embeddings
RECORDINGS = "ep_start_end_ids.npy"  # first and last frame of each
SCENES = "scene_info.npy"
RECORDER = ".hydra/merged_config.yaml"  # what the recording program was told


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A described stretch of frames `start` ... `end`, both included, of which `end` itself is only ever padding."""

    start: int
    end: int
    task: str
    instruction: str
    number: int = -1  # in the annotations; of play there is none

    @property
    def length(self) -> int:
        """Frames that may be observed and whose actions count."""
        return self.end - self.start

    def __str__(self) -> str:
        return f"frames {self.start}-{self.end} ({self.instruction!r})"


def find_annotations(config: CalvinDataConfig, split: str, folder: Path) -> Path:
    """Return the file of language annotations of a split folder.

    It is in `data.annotations`; where that is not set, in lang_annotations, or else in the only other folder lang_*, or
    in the first of several that describe the same segments.

    Raises:
        FileNotFoundError: there is none; lists what there is.
        UserError: several folders describe different segments.
    """
    found = sorted(folder.glob(f"*/{ANNOTATIONS}"))
    if config.annotations is not None:
        if (path := folder / config.annotations / ANNOTATIONS).is_file():
            return path
        raise FileNotFoundError(
            f"data.annotations={config.annotations}: {path} does not exist.{_names(found)} Set data.annotations to the "
            "name of a folder that has one, or to null."
        )
    if (path := folder / "lang_annotations" / ANNOTATIONS).is_file():
        return path
    candidates = [path for path in found if path.parent.name.startswith("lang_")]
    if not candidates:
        raise FileNotFoundError(
            f"{folder} has no language annotations: neither lang_annotations/{ANNOTATIONS} nor another lang_* folder "
            f"with one.{_names(found)} {_way_without(config, split, folder)}"
        )
    if len(candidates) > 1:
        first = read_segments(candidates[0])
        if other := next((path for path in candidates[1:] if read_segments(path) != first), None):
            raise UserError(
                f"{candidates[0]} and {other} describe different segments: choose one with data.annotations="
                f"{candidates[0].parent.name} or data.annotations={other.parent.name}."
            )
    return candidates[0]


def _names(found: list[Path]) -> str:
    return f" There are: {', '.join(path.parent.name for path in found)}." if found else ""


def _way_without(config: CalvinDataConfig, split: str, folder: Path) -> str:
    held = sorted(path.name for path in folder.iterdir() if not path.match("episode_*.npz"))
    holds = f"It holds {', '.join(held[:8]) or 'no folder'} beside its frames."
    if split == "validation":
        return (
            f"{holds} Complete the download, or set data.validation_split={config.train_split}, which validates on the "
            "segments that are trained on."
        )
    return f"{holds} Only splits with language annotations can be trained on: complete the download."


def read_segments(path: Path) -> list[Segment]:
    """Return the language segments of an annotation file, in its order.

    Raises:
        UserError: it is not what CALVIN writes, or lists no segment.
    """
    content = read_pickled_npy(path)
    try:
        texts, tasks, ranges = content["language"]["ann"], content["language"]["task"], content["info"]["indx"]
        pairs = [tuple(pair) for pair in ranges]
        if not all(isinstance(number, int | np.integer) for pair in pairs for number in pair):
            raise UserError("index ranges that are not pairs of whole numbers")
        bounds = np.array(pairs)
        if not len(texts) == len(tasks) == len(bounds):
            raise UserError(f"{len(texts)} instructions, {len(tasks)} tasks and {len(bounds)} index ranges")
        if len(bounds) and not _are_ranges(bounds):
            raise UserError(
                f"index ranges of shape {bounds.shape} and type {bounds.dtype}, not pairs of whole numbers "
                "of at most seven digits"
            )
        if not all(isinstance(text, str) for text in (*texts, *tasks)):
            raise UserError("instructions or tasks that are not text")
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path} must hold language.ann, language.task and info.indx of equal length: {error}"
        ) from error
    if not len(bounds):
        raise UserError(f"{path} lists no segment: set data.root to a data set with language annotations.")
    rows = zip(bounds.tolist(), tasks, texts, strict=True)
    return [
        Segment(start=s, end=e, task=str(task), instruction=str(text), number=number)
        for number, ((s, e), task, text) in enumerate(rows)
    ]


def read_rate(folder: Path) -> float | None:
    """Return the frames a second that a split was recorded at; None where it does not say.

    Raises:
        UserError: the recording program's config is there, but damaged.
    """
    path = folder / RECORDER
    if not path.is_file():
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return float(content["recorder"]["record_fps"])
    except (KeyError, TypeError):
        return None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not the config of a recording: {error}. Correct or delete it.") from error


def split_folder(config: CalvinDataConfig, split: str) -> Path:
    """Return the folder of a split, or say which `data.root` would have one."""
    names = {"train": config.train_split, "validation": config.validation_split}
    check_split(split)
    root, name = Path(config.root).expanduser(), names[split]
    if (root / name).is_dir():
        return root / name
    if not root.is_dir():
        raise FileNotFoundError(
            f"data.root={config.root} is not a folder: download a CALVIN data set (github.com/mees/calvin, dataset/) "
            "and set data.root to it, e.g. data.root=<downloads>/task_ABC_D."
        )
    if next(root.glob(f"*/{ANNOTATIONS}"), None) is not None:
        hint = f"It is itself a split: set data.root={root.resolve().parent}."
    elif found := sorted(str(path.parent) for path in root.glob(f"*/{name}") if path.is_dir()):
        hint = f"It holds whole data sets: set data.root={' or '.join(found)}."
    else:
        holds = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        other = config.train_split if split == "validation" and (root / config.train_split).is_dir() else "<its name>"
        hint = f"It holds {holds}. Set data.root to the folder above '{name}', or data.{split}_split={other}."
    raise FileNotFoundError(f"data.root={config.root} has no folder '{name}'. {hint}")


def choose_segments(segments: list[Segment], config: CalvinDataConfig, annotations: Path) -> list[Segment]:
    """Return the segments that `data.episodes` chooses, by their places in the annotations.

    Raises:
        UserError: there is no such number, nothing is left, or play is asked for, which has no numbers.
    """
    selection = EpisodeSelection.parse(config.episodes)
    if not selection.is_all and config.play_instruction is not None:
        raise UserError(
            f"data.episodes={selection} chooses among the described segments, and data.play_instruction adds what lies "
            "between them, which has no numbers: set one of them to null."
        )
    return [segments[i] for i in selection.choose(range(len(segments)), annotations)]


def select_segments(segments: list[Segment], config: CalvinDataConfig, folder: Path) -> list[Segment]:
    """Keep `data.scenes`, leave out `data.exclude_tasks`, keep `data.few_shot_file`, then `data.fraction`; add play.

    Raises:
        UserError: a scene or task that there is not, or nothing is left.
        FileNotFoundError: a file that the selection needs.
    """
    described = segments
    if config.scenes:
        scenes = _read_scenes(folder, config.scenes)
        segments = [segment for segment in segments if _in_scenes(segment, scenes)]
    if config.exclude_tasks:
        tasks = sorted({segment.task for segment in segments})
        for task in config.exclude_tasks:
            if task not in tasks:
                raise UserError(
                    f"data.exclude_tasks has {task!r}, which is not a task of {folder}.{nearest(task, tasks)} "
                    f"Its tasks: {', '.join(tasks)}."
                )
        segments = [segment for segment in segments if segment.task not in config.exclude_tasks]
    if not segments:
        raise UserError(f"data.scenes={config.scenes} and data.exclude_tasks leave no segment of {folder}.")
    play = [] if config.play_instruction is None else play_segments(folder, described, config)
    if config.few_shot_file is not None:
        listed = read_few_shot(Path(config.few_shot_file).expanduser())
        segments = [segment for segment in segments if (segment.start, segment.end) in listed]
        absent = len(listed - {(segment.start, segment.end) for segment in segments})
        if not segments:
            raise UserError(f"none of the {len(listed)} segments of data.few_shot_file={config.few_shot_file} is here.")
        if absent:
            logger.warning("%d of %d segments of data.few_shot_file are not in %s", absent, len(listed), config.root)
    kept = [segments[i] for i in evenly_spaced(len(segments), max(1, round(config.fraction * len(segments))))]
    return kept + play


def play_segments(folder: Path, segments: list[Segment], config: CalvinDataConfig) -> list[Segment]:
    """Return the stretches of the recordings that none of `segments` covers, with `data.play_instruction`.

    With all segments of the folder given, tasks that are left out are no play either.
    """
    if not (config.play_instruction or "").strip():
        raise UserError("data.play_instruction is empty: say what play is told, e.g. data.play_instruction='play'.")
    recordings = _read_recordings(folder / RECORDINGS)
    scenes = _read_scenes(folder, config.scenes) if config.scenes else None
    covered = sorted((segment.start, segment.end) for segment in segments)
    play = []
    for first, last in recordings.tolist():
        start = first
        inside = covered[bisect_left(covered, (first, 0)) : bisect_left(covered, (last, 0))]
        for begin, end in [*inside, (last, last)]:
            if begin > start:  # `begin` itself is another segment's, or the last frame: only padding, like every end
                play.append(Segment(start=start, end=begin, task="play", instruction=str(config.play_instruction)))
            start = max(start, end)
    return [segment for segment in play if scenes is None or _in_scenes(segment, scenes)]


def _in_scenes(segment: Segment, scenes: list[tuple[int, int]]) -> bool:
    return any(first <= segment.start and segment.end <= last for first, last in scenes)


def _read_scenes(folder: Path, names: list[str]) -> list[tuple[int, int]]:
    """Return the frames of scenes, called A or calvin_scene_A."""
    path = folder / SCENES
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, but data.scenes={names} needs it: set data.scenes=[].")
    content = read_pickled_npy(path)
    try:
        known = {name.removeprefix("calvin_scene_"): (int(a), int(b)) for name, (a, b) in content.items()}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} must hold {{scene: (first frame, last frame)}}: {error}") from error
    scenes = []
    for name in names:
        if (scene := name.removeprefix("calvin_scene_")) not in known:
            raise UserError(f"data.scenes has {name!r}, but {path} has {', '.join(sorted(known))}.")
        scenes.append(known[scene])
    return scenes


def _read_recordings(path: Path) -> Int64[np.ndarray, "n 2"]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, but data.play_instruction needs it: set it to null.")
    array = read_npy(path)
    if not _are_ranges(array):
        raise UserError(f"{path} must hold pairs of frame numbers of seven digits, but is {array.dtype} {array.shape}")
    return array.astype(np.int64)


def _are_ranges(array: np.ndarray) -> bool:
    is_pairs = array.ndim == 2 and array.shape[1] == 2 and array.dtype.kind in "iu"
    return is_pairs and bool(((array >= 0) & (array < 10**7)).all())


def read_few_shot(path: Path) -> set[tuple[int, int]]:
    """Return the first and last frames of the segments that a JSON file {task: [[start, end], ...]} lists.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"data.few_shot_file={path} does not exist: give a JSON file {{task: [[start, end], ...]}}."
        )
    try:
        tasks: dict[str, list[Any]] = json.loads(path.read_text(encoding="utf-8"))
        return {(int(start), int(end)) for ranges in tasks.values() for start, end in ranges}
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        refuse_pointer(path)
        raise UserError(f"data.few_shot_file={path} is not JSON of {{task: [[start, end], ...]}}: {error}") from error


def index_faults(segments: list[Segment], annotations: Path, folder: Path) -> dict[int, Exception]:
    """Return, by segment number, what the folder's listing already shows to be wrong; no file is opened."""
    present = _frames_on_disk(folder)
    starts, ends = (np.array([getattr(segment, name) for segment in segments]) for name in ("start", "end"))
    lefts, rights = np.searchsorted(present, starts, side="left"), np.searchsorted(present, ends, side="right")
    faults: dict[int, Exception] = {}
    for number in np.flatnonzero((ends < starts) | (rights - lefts != ends - starts + 1)).tolist():
        segment = segments[number]
        told = f"{annotations}: segment {number}, {segment},"
        if segment.end < segment.start:
            faults[number] = UserError(f"{told} ends before it starts.")
            continue
        found = present[lefts[number] : rights[number]] - segment.start
        gaps = np.flatnonzero(found != np.arange(len(found)))
        first = segment.start + (int(gaps[0]) if len(gaps) else len(found))
        missing = segment.end - segment.start + 1 - len(found)
        faults[number] = FileNotFoundError(
            f"{told} lacks {missing} frames, the first being episode_{first:07d}.npz: complete the download."
        )
    return faults


def _frames_on_disk(folder: Path) -> Int64[np.ndarray, "f"]:
    pattern = re.compile(r"episode_(\d{7})\.npz")
    with os.scandir(folder) as entries:
        frames = [int(match[1]) for entry in entries if (match := pattern.fullmatch(entry.name))]
    return np.sort(np.array(frames, dtype=np.int64))
