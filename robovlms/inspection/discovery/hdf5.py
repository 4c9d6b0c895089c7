"""What HDF5 files of demonstrations say of themselves: robomimic and robosuite, and ALOHA and ACT."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from robovlms.data.files.hdf5 import child, is_group, names, naming, open_hdf5, picture_size
from robovlms.data.libero.reader import told_in_episode
from robovlms.errors import UserError
from robovlms.inspection.discovery.columns import choose_action, choose_state, put_together
from robovlms.inspection.discovery.folder import Camera, Folder, Rows, Vector, ask, found, guess, spread, without_depth
from robovlms.inspection.discovery.presets import contract_of_preset
from robovlms.inspection.discovery.robosuite import facts_of

MAX_FILES = 10  # that are opened
WHAT_IS_DONE = "what does the robot do? e.g. 'put the cup on the plate'; the files do not say"


def hdf5_files(root: Path) -> list[Path]:
    """Return the HDF5 files of a folder, or the file that is given."""
    return [root] if root.is_file() else sorted(path for path in root.iterdir() if path.suffix in (".hdf5", ".h5"))


def is_libero(root: Path) -> bool:
    """Tell whether the first file is LIBERO's own, whose preset says everything."""
    path = hdf5_files(root)[0]
    with open_hdf5(path) as file, naming(path):
        pictures = {name for name, _ in _pictures(file[_demos(file)[0]])}
        return "problem_info" in file["data"].attrs and pictures >= {"obs/agentview_rgb", "obs/eye_in_hand_rgb"}


def describe_robomimic(root: Path) -> Folder:
    """Return what files of robomimic or robosuite hold: /data/demo_0/actions, obs, and env_args.

    Raises:
        UserError: a file is damaged, or has no pictures.
    """
    files = hdf5_files(root)
    cameras, rows, lengths = list[Camera](), list[Rows](), list[int]()
    with open_hdf5(files[0]) as file, naming(files[0]):
        demos = _demos(file)
        first = file[demos[0]]
        pictures = {name: size for name, size in _pictures(first) if not name.startswith("next_obs/")}
        seen, notes = without_depth(pictures)
        cameras = [Camera(name.removeprefix("obs/"), pictures[name]) for name in seen]
        if not pictures:
            raise UserError(
                f"{files[0]}: {demos[0]} has no pictures, it has {', '.join(names(first)) or 'nothing'}. robosuite and "
                "robomimic record states, from which pictures are rendered first: robomimic's dataset_states_to_obs.py "
                "--camera_names agentview robot0_eye_in_hand writes a file with them."
            )
        columns = {key: width for key, width in _columns(first).items() if not key.startswith("next_obs/")}
        action = put_together(choose_action(columns, files[0]), None, "/data/demo_0")
        told = _attribute(file["data"], "env_args") or {"env_kwargs": _attribute(file["data"], "env_info")}
        facts = facts_of(told, action.width)
        state = _robot_state(columns, facts.is_joint)
        lang = told_in_episode(first)
        lengths = [int(file[demo][action.key].shape[0]) for demo in demos]
        for place in spread(len(demos)):
            rows.append(_rows(file[demos[place]], action, state))
    rate = facts.rate or guess(20, "robosuite's default rate; the file does not say")
    return Folder(
        option="libero",
        what="HDF5 files of robomimic or robosuite",
        root=root,
        counts=f"{len(files)} files; the first has {len(lengths)} demonstrations, {sum(lengths)} frames",
        cameras=cameras,
        action=put_together(action, facts.names, facts.source),
        state=state,
        rate=rate,
        rows=rows,
        instructions=[] if lang is None else [lang],
        robot=facts.robot,
        options={
            "action_key": found(action.key, f"the datasets of {demos[0]}"),
            "instruction": ask(WHAT_IS_DONE) if lang is None else found(None, "ep_meta of each demonstration: lang"),
            "flip": guess(False, "robomimic turns its pictures upright; true if they are upside down"),
        },
        contract=facts.contract,
        notes=notes,
    )


def describe_aloha(root: Path) -> Folder:
    """Return what files of ALOHA, ACT or what records like them hold: /action and /observations, an episode each.

    Raises:
        UserError: a file is damaged.
    """
    files = hdf5_files(root)
    rows, frames = [], 0
    with open_hdf5(files[0]) as file, naming(files[0]):
        prefix = "observations/images/"
        pictures = dict(_pictures(file))
        seen, notes = without_depth(pictures)
        cameras = [Camera(name.removeprefix(prefix), pictures[name]) for name in seen]
        columns = _columns(file)
        action = choose_action(columns, files[0])
        state = choose_state({key: width for key, width in columns.items() if "observations/" in key}, action)
        told = file.attrs.get("language_instruction", child(file, "language_instruction"))
        is_act = "compress" in file.attrs and any(file[name].ndim == 2 for name in seen)
        frames = int(file[action.key.partition("+")[0]].shape[0])
    for path in (files[place] for place in spread(len(files))[:MAX_FILES]):
        with open_hdf5(path) as file, naming(path):
            rows.append(_rows(file, action, state))
    preset = contract_of_preset("aloha", action.width)
    known = list(preset["names"]) if preset else None
    source = f"guess: the {action.width} joints of ALOHA's two arms, by their number; the files name none"
    names_, told_by = (known, source) if known else (None, "the files name no entry")
    options = {"action_key": found(action.key, "the files' datasets")}
    options["instruction"] = ask(WHAT_IS_DONE) if told is None else found(None, "the files' own language_instruction")
    if is_act:
        views = [camera.key for camera in cameras]
        options["bgr"] = guess(views, "JPEGs of ACT's own recorder have blue first; [] if reds are red")
    return Folder(
        option="aloha",
        robot="aloha" if known else None,
        what="HDF5 files of ALOHA or ACT",
        root=root,
        counts=f"{len(files)} episodes; the first has {frames} frames",
        cameras=cameras,
        action=put_together(action, names_, told_by),
        state=put_together(state, names_, told_by) if state else None,
        rate=guess(50, "ALOHA's rate")
        if known
        else ask("how many actions a second were recorded? The files do not say"),
        rows=rows,
        instructions=[],
        options=options,
        notes=notes,
    )


def _demos(file: Any) -> list[str]:
    data = child(file, "data")
    found_ = [name for name in data if re.fullmatch(r"demo_\d{1,9}", name)] if is_group(data) else []
    if not found_:
        raise UserError(f"{file.filename} has no demo_0, demo_1, ... in /data.")
    return [f"data/{name}" for name in sorted(found_, key=lambda name: int(name.partition("_")[2]))]


def _attribute(group: Any, name: str) -> dict[str, Any]:
    """Return an attribute that is a JSON object; an empty one where it is missing or something else."""
    try:
        value = json.loads(group.attrs.get(name, "{}"))
    except (ValueError, TypeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _pictures(group: Any) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the datasets of colour pictures, with their size."""
    for name in names(group):
        try:
            yield name, picture_size(child(group, name))
        except ValueError:
            continue


def _columns(group: Any) -> dict[str, int]:
    """Return the width of every dataset of vectors."""
    members = {name: child(group, name) for name in names(group)}
    return {
        name: int(member.shape[1])
        for name, member in members.items()
        if len(member.shape) == 2 and member.dtype.kind in "fiu" and member.dtype != np.uint8
    }


def _robot_state(columns: dict[str, int], is_joint: bool) -> Vector | None:
    """Return what robosuite records of its robot: joints, or the hand's pose, and the gripper."""
    robots = sorted({match[0] for key in columns if (match := re.match(r"obs/robot\d+", key))})
    wanted = ("joint_pos", "gripper_qpos") if is_joint else ("eef_pos", "eef_quat", "gripper_qpos")
    keys = [key for robot in robots for part in wanted if (key := f"{robot}_{part}") in columns]
    if not keys:
        return None
    recorded = [name for key in keys for name in _entries(key, columns[key], len(robots) > 1)]
    why = "guess: the hand's pose and the gripper's fingers; joints are in robot0_joint_pos"
    source = "the datasets of /data/demo_0/obs" if is_joint else why
    return Vector(key="+".join(keys), names=recorded, width=len(recorded), source=source)


def _entries(key: str, width: int, has_several: bool) -> list[str]:
    """Name the entries of an observation of robosuite's."""
    robot, _, part = key.removeprefix("obs/").partition("_")
    arm = f"{robot}/" if has_several else ""
    axes = {"eef_pos": ["x", "y", "z"], "eef_quat": ["qx", "qy", "qz", "qw"]}.get(part)
    stem = {"gripper_qpos": "finger", "joint_pos": "j"}.get(part, part)
    return [f"{arm}{name}" for name in axes or [f"{stem}{i + 1}" for i in range(width)]]


def _rows(group: Any, action: Vector, state: Vector | None) -> Rows:
    def read(vector: Vector) -> np.ndarray:
        columns = [np.asarray(child(group, re.sub(r"\[.*", "", key)), np.float64) for key in vector.key.split("+")]
        return np.concatenate(columns, axis=1)

    return Rows(read(action), read(state) if state else None)
