"""What a LeRobotDataset folder says of itself: info.json, modality.json, tasks, and the numbers of some episodes."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robovlms.data.files.vectors import VectorSpec
from robovlms.data.lerobot.format import (
    INFO_PATH,
    DatasetInfo,
    EpisodeFiles,
    read_episodes,
    read_info,
    read_numbers,
    read_tasks,
)
from robovlms.data.lerobot.names import recorded_names
from robovlms.data.lerobot.tables import read_json
from robovlms.errors import UserError
from robovlms.inspection.discovery.columns import choose_action, choose_state, put_together
from robovlms.inspection.discovery.folder import (
    MAX_ROWS,
    Answer,
    Camera,
    Folder,
    Rows,
    Vector,
    ask,
    found,
    spread,
    tell,
    without_depth,
)
from robovlms.inspection.discovery.names import GENERIC

log = logging.getLogger(__name__)

MODALITY_PATH = "meta/modality.json"
NUMBERS = ("float32", "float64", "int64", "int32", "uint8", "bool")
BOOKKEEPING = {"timestamp", "frame_index", "episode_index", "index", "task_index"}


def describe_lerobot(root: Path) -> Folder:
    """Return what a LeRobotDataset folder of v2.0, v2.1 or v3.x holds.

    Raises:
        FileNotFoundError, UserError: the folder cannot be read; names the file.
    """
    info, raw = read_info(root), read_json(root / INFO_PATH)
    tasks = read_tasks(info)
    modality = _modality(root)
    shapes = {key: info.features[key]["shape"] for key in info.keys(*NUMBERS)}
    vectors = {key: shape for key, shape in shapes.items() if len(shape) == 1 and key not in BOOKKEEPING}
    columns = {key: int(shape[0]) for key, shape in vectors.items()}
    unread = [f"{key} (its shape {list(shape)} is no vector)" for key, shape in shapes.items() if len(shape) > 1]
    action = _named(choose_action(columns, root, unread), info, modality, "action")
    state = choose_state(columns, action)
    state = _named(state, info, modality, "state") if state else None
    cameras, episodes, options, notes = _cameras(info)
    options = {"action_key": tell(action.key, action.choice or f"{INFO_PATH}: features")} | options
    options["language_key"] = _language(columns)
    if not all(text.strip() for text in tasks.values()):
        options["instruction"] = ask("what does the robot do? e.g. 'put the cup on the plate'; a task's text is empty")
    rows = _rows(info, episodes, action, state, shapes)
    frames = sum(episode.length for episode in episodes)
    robot = raw.get("robot_type")
    return Folder(
        option="lerobot",
        what=f"a LeRobot data set {raw['codebase_version']}",
        root=root,
        counts=f"{len(episodes)} episodes, {frames} frames, {len(tasks)} tasks",
        cameras=cameras,
        action=action,
        state=state,
        rate=found(info.fps, f"{INFO_PATH}: fps"),
        rows=rows,
        instructions=[text for text in tasks.values() if text.strip()],
        robot=robot if isinstance(robot, str) and robot.lower() not in ("", "unknown") else None,
        options=options,
        notes=notes,
    )


def _modality(root: Path) -> dict[str, Any]:
    """Return GR00T's names of slices, if the folder has them."""
    return read_json(root / MODALITY_PATH) if (root / MODALITY_PATH).is_file() else {}


def _named(vector: Vector, info: DatasetInfo, modality: dict[str, Any], group: str) -> Vector:
    """Add the recorded names of a vector's entries: of info.json, of modality.json where those are numbers alone, or of
    its columns.
    """
    shapes = {key: feature["shape"] for key, feature in info.features.items()}
    spec = VectorSpec(vector.key, f"data.{group}_key", shapes, info.root)
    names = recorded_names(spec, info.features)
    if names is not None and not all(GENERIC.fullmatch(name) for name in names):
        return put_together(vector, names, f"{INFO_PATH}: names of {vector.key}")
    if len(spec.parts) == 1 and (sliced := _sliced(modality.get(group), vector)) is not None:
        return put_together(vector, sliced, f"{MODALITY_PATH}: slices of {vector.key}")
    if len(spec.parts) > 1:
        stems = _stems([key for key, _ in spec.parts])
        names = [name for (_, part), stem in zip(spec.parts, stems, strict=True) for name in _entries_of(stem, part)]
        return put_together(vector, names, f"{INFO_PATH}: the columns' names")
    return put_together(vector, names, f"{INFO_PATH}: features" + ("" if names else ", which name no entry"))


def _stems(keys: list[str]) -> list[str]:
    """Return the last parts of keys, as many as tell them apart."""
    parted = [key.split(".") for key in keys]
    for count in range(1, max(map(len, parted)) + 1):
        stems = ["_".join(parts[-count:]) for parts in parted]
        if len(set(stems)) == len(set(keys)):
            return stems
    return keys


def _entries_of(stem: str, part: slice) -> list[str]:
    """Name the entries of a column."""
    count = part.stop - part.start
    return [stem] if count == 1 else [f"{stem}_{i + 1}" for i in range(count)]


def _sliced(slices: Any, vector: Vector) -> list[str] | None:
    """Return the entries' names by the slices of a modality.json; None where these do not cover the vector."""
    names: list[str | None] = [None] * vector.width
    for stem, place in slices.items() if isinstance(slices, dict) else ():
        if not isinstance(place, dict) or place.get("original_key", vector.key) != vector.key:
            continue
        start, end = place.get("start"), place.get("end")
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= vector.width:
            return None
        names[start:end] = [stem] if end - start == 1 else [f"{stem}_{i + 1}" for i in range(end - start)]
    return [name for name in names if name is not None] if None not in names else None


def _language(columns: dict[str, int]) -> Answer:
    """Return the column of task numbers: GR00T's own where there is one."""
    annotated = [key for key in columns if re.search(r"annotation\..*(task_description|instruction)$", key)]
    if annotated:
        return found(annotated[0], f"{INFO_PATH}: GR00T's column of the task's number; the other one is task_index")
    return found("task_index", f"{INFO_PATH}: features")


def _cameras(info: DatasetInfo) -> tuple[list[Camera], list[EpisodeFiles], dict[str, Answer], list[str]]:
    """Return the cameras whose files are there, all episodes, whether some must be left out, and what was left out."""
    notes = [f"{key} records depth, which policies do not see: left out" for key in info.depth_keys]
    keys, named_so = without_depth(key for key in info.keys("image", "video") if key not in info.depth_keys)
    notes += named_so
    videos = [key for key in keys if key in info.keys("video")]
    episodes = read_episodes(info, videos)
    lacking = {key: [each.index for each in episodes if not each.videos[key].path.is_file()] for key in videos}
    dead = [key for key, lost in lacking.items() if len(lost) == len(episodes)]
    usable = [key for key in keys if key not in dead]
    if not usable:
        notes += [f"{key} has no file in videos/: complete the download before training" for key in dead]
        return [Camera(key, _size(info.features[key])) for key in dead], episodes, {}, notes
    notes += [f"{key} has no file in videos/: left out" for key in dead]
    cameras = [Camera(key, _size(info.features[key])) for key in usable]
    absent = {index for key in usable for index in lacking.get(key, [])}
    absent |= {episode.index for episode in episodes if not episode.file.is_file()}
    options = {}
    if absent:
        told = ", ".join(str(index) for index in sorted(absent)[:5]) + (", ..." if len(absent) > 5 else "")
        options["skip_bad"] = ask(
            f"{len(absent)} of {len(episodes)} episodes lack a file of these cameras or their rows ({told}): complete "
            "the download and say false, or say true to leave them out"
        )
    return cameras, episodes, options, notes


def _size(feature: dict[str, Any]) -> tuple[int, int] | None:
    shape = feature["shape"]
    if len(shape) != 3:
        return None
    return (shape[0], shape[1]) if shape[2] in (1, 3, 4) else (shape[1], shape[2])


def _rows(
    info: DatasetInfo,
    episodes: Sequence[EpisodeFiles],
    action: Vector,
    state: Vector | None,
    shapes: dict[str, list[int]],
) -> list[Rows]:
    """Read the numbers of some episodes; those of single files that cannot be read are left to the reader to refuse.

    Raises:
        UserError, FileNotFoundError: there are files, and none of them can be read; it is the first one's fault.
    """
    specs = [VectorSpec(vector.key, "", shapes, info.root) if vector else None for vector in (action, state)]
    by_file: dict[Path, list[EpisodeFiles]] = {}
    for episode in episodes:
        by_file.setdefault(episode.file, []).append(episode)
    files = list(by_file)
    read, rows = 0, list[Rows]()
    faults = list[UserError | FileNotFoundError]()
    for place in spread(len(files)):
        path, members = files[place], by_file[files[place]]
        try:
            columns = read_numbers(path, members, sorted({key for spec in specs if spec for key in spec.keys}))
            actions, states = (spec.take(columns, path).astype(np.float64) if spec else None for spec in specs)
        except (UserError, FileNotFoundError) as error:
            faults.append(error)
            continue
        for episode in (members[i] for i in spread(len(members))):
            part = slice(episode.row, episode.row + episode.length)
            assert actions is not None
            rows.append(Rows(actions[part], None if states is None else states[part]))
            read += episode.length
        if read > MAX_ROWS:
            break
    if faults and not rows:
        raise faults[0]
    for fault in faults:
        log.warning("not looked into: %s", fault)
    return rows
