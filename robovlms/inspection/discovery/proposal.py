"""From what a folder holds to the keys of its data config, each found, guessed or asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from robovlms.actions.contract import POSITION_NAMES
from robovlms.config.choices import Rotation
from robovlms.config.data import GRIPPER
from robovlms.inspection.discovery import evidence
from robovlms.inspection.discovery.folder import Answer, Camera, Folder, Kind, Rows, ask, found, guess, tell
from robovlms.inspection.discovery.names import EntryNames, entry_names
from robovlms.inspection.discovery.presets import preset_of_robot

JOINTS = re.compile(
    r"joint|shoulder|elbow|wrist|waist|forearm|hip|knee|ankle|neck|head|torso|finger|thumb|index|middle|ring|pinky|hand"
    r"|arm|leg|pan|lift|flex|motor|^j\d|/j\d"
)
WRIST = re.compile(r"wrist|hand|gripper")
AXES = "which axes do the entries follow: base or world (fixed ones), or tcp (they turn with the hand)?"


@dataclass(frozen=True)
class Proposal:
    """A data config by dotted key, in the order that it is written in."""

    folder: Folder
    answers: dict[str, Answer]

    def of_kind(self, kind: Kind) -> dict[str, Answer]:
        """Return the answers that are found, guessed or asked."""
        return {key: answer for key, answer in self.answers.items() if answer.kind is kind}


def propose(folder: Folder) -> Proposal:
    """Return the data config of a folder."""
    folder = replace(folder, rows=[rows for rows in folder.rows if rows.are_whole])
    views = name_views(folder.cameras)
    names, told_by = _action_names(folder)
    state, state_told = _state_names(folder, names)
    contract = _contract(folder, names, told_by, state) | folder.contract
    answers = {"name": found(folder.option), "root": found(str(folder.root))}
    answers |= {f"views.{view}": found(camera.key, _camera_note(camera)) for view, camera in views.items()}
    answers |= {f"contract.{key}": contract[key] for key in ORDER if key in contract}
    answers["normalization.mode"] = found("quantile", "1st and 99th percentile of every entry become -1 and +1")
    answers |= {f"shift.{view}": found(4 if WRIST.search(views[view].key) else 10) for view in views}
    options = dict(folder.options)
    if "bgr" in options:
        shown = [view for view, camera in views.items() if camera.key in options["bgr"].value]
        options["bgr"] = replace(options["bgr"], value=shown)
    answers |= options
    if state is not None and folder.state is not None:
        why = folder.state.choice or "the policy sees it beside the pictures; null, with proprio_names=[], hides it"
        answers["proprio_key"] = tell(folder.state.key, why)
        answers["proprio_names"] = tell(state.names, state_told)
        if state.rotation is not Rotation.none:
            answers["proprio_rotation"] = found(str(state.rotation), "by the entries' names")
    return Proposal(folder, answers)


ORDER = ("names", "representation", "frame", "rotation", "position_unit", "rotation_unit", "gripper_closed",
    "gripper_open", "continuous_grippers", "control_hz")  # fmt: skip


def name_views(cameras: Sequence[Camera]) -> dict[str, Camera]:
    """Name cameras as presets do: the first that is on no hand is `side`, the only one on a hand `wrist`; the others
    keep the last part of their keys.
    """
    on_hands = [camera for camera in cameras if WRIST.search(camera.key.rpartition("/")[2].rpartition(".")[2])]
    others = [camera for camera in cameras if camera not in on_hands]
    named: dict[str, Camera] = {}
    for camera in [*others, *on_hands]:
        name = re.sub(r"\W", "_", re.split(r"[./]", camera.key)[-1]) or "camera"
        name = "side" if camera in others[:1] else "wrist" if on_hands == [camera] else name
        while name in named:
            name += "_2"
        named[name] = camera
    return named


def _camera_note(camera: Camera) -> str:
    return f"{camera.size[0]} x {camera.size[1]} px" if camera.size else ""


def _action_names(folder: Folder) -> tuple[EntryNames, str]:
    action = folder.action
    names = entry_names(action.names, action.width)
    if names.is_named:
        return names, action.source
    if (known := preset_of_robot(folder.robot, action.width)) is not None:
        preset, contract = known
        return entry_names(contract["names"], action.width), f"guess: as in data={preset}, by robot_type {folder.robot}"
    if action.names is not None:
        return names, action.source
    grip = _last_is_gripper(folder.rows)
    recorded = [f"j{i + 1}" for i in range(action.width - grip)] + [GRIPPER] * grip
    told = "the last takes two values, as grippers do; " if grip else ""
    note = "moves or places of a hand are called x, y, z, roll, pitch, yaw (see docs/data.md)"
    return replace(entry_names(recorded, action.width), is_named=False), f"guess: {action.source}; {told}{note}"


def _last_is_gripper(rows: Sequence[Rows]) -> bool:
    """Tell whether the last entry alone takes two values."""
    every = np.concatenate([row.actions for row in rows]) if rows else np.zeros((0, 1))
    counts = [len(np.unique(column)) for column in every.T]
    return len(counts) > 1 and counts[-1] == 2 and min(counts[:-1]) > 2


def _state_names(folder: Folder, action: EntryNames) -> tuple[EntryNames | None, str]:
    state = folder.state
    if state is None:
        return None, ""
    names = entry_names(state.names, state.width)
    if names.is_named or (state.names is not None and state.names == folder.action.names and action.is_named):
        return (names if names.is_named else action), state.source
    if state.width == len(action.names) and not action.is_pose:
        return action, f"guess: {state.source}; the action has as many, so they are called the same"
    if state.names is not None:
        return names, state.source
    return replace(names, names=[f"s{i + 1}" for i in range(state.width)]), f"guess: {state.source}"


def _pairs(action: EntryNames, state: EntryNames | None) -> list[tuple[int, int]]:
    """Return the places of the entries, but for grippers, that both have."""
    places = {name: place for place, name in enumerate(state.names)} if state else {}
    return [
        (place, places[name])
        for place, name in enumerate(action.names)
        if name in places and place not in action.grippers
    ]


def _contract(folder: Folder, names: EntryNames, told_by: str, state: EntryNames | None) -> dict[str, Answer]:
    pairs = _pairs(names, state)
    said = folder.contract.get("representation")
    told = {"representation": said or evidence.representation(names, folder.rows, pairs)}
    is_delta = told["representation"].value != "absolute"
    written = [_with_d(name) for name in names.names] if names.is_pose and is_delta else names.names
    told["names"] = tell(written, told_by)
    told |= _pose(folder, names, pairs, is_delta) if names.is_pose else _joints(folder, names)
    if names.grippers:
        known = preset_of_robot(folder.robot, folder.action.width)
        grips = evidence.grippers(names, folder.rows, known)
        told |= {"gripper_closed": grips.closed, "gripper_open": grips.open}
        if grips.continuous.value:
            told["continuous_grippers"] = grips.continuous
    told["control_hz"] = folder.rate
    return told


def _with_d(name: str) -> str:
    """Write a pose's entry with the d of a delta; other entries stay as they are."""
    arm, slash, bare = name.rpartition("/")
    is_axis = bare in (*POSITION_NAMES, "roll", "pitch", "yaw", "rx", "ry", "rz")
    return f"{arm}{slash}d{bare}" if is_axis else name


def _joints(folder: Folder, names: EntryNames) -> dict[str, Answer]:
    arm = [place for place in range(len(names.names)) if place not in names.grippers]
    values = np.concatenate([row.actions[:, arm] for row in folder.rows] or [np.zeros((0, len(arm)))])
    note = evidence.angle_note(values)
    is_named = any(JOINTS.search(names.names[place]) for place in arm)
    if note is None:
        largest = float(np.abs(values).max())
        frame = ask(
            f"the largest value is {largest:.4g}, so these are no angles: image if they are pixels, joint for anything "
            "that is neither a place nor a turn in space"
        )
    elif names.has_axes:
        frame = ask(AXES)
    elif names.is_named or (is_named and folder.action.names is not None):
        frame = found("joint", f"by the entries' names; {note}") if is_named else guess("joint", f"no x, y, z; {note}")
    else:
        frame = ask(f"joint if the entries are joints ({note}); {AXES[len('which axes do the entries follow: ') :]}")
    return {"frame": frame, "rotation": found("none"), "position_unit": found(None, "there is no x, y, z")}


def _pose(folder: Folder, names: EntryNames, pairs: list[tuple[int, int]], is_delta: bool) -> dict[str, Answer]:
    places = [place for place, name in enumerate(names.names) if name.rpartition("/")[2] in POSITION_NAMES]
    felt = evidence.follows(folder.rows, [pair for pair in pairs if pair[0] in places])
    is_alike = felt is not None and max(felt.level, felt.change) >= evidence.ALIKE
    axes = AXES if is_delta else "which axes are the places given in: base (the robot's) or world?"
    frame = guess("base", "they go along the state's axes; world if the state is in those") if is_alike else ask(axes)
    rotation = found(str(names.rotation), "by the entries' names")
    if names.rotation is Rotation.euler and is_delta:
        rotation = guess("euler", "a turn by these angles; euler_increment where they are added to the hand's angles")
    every = np.concatenate([row.actions for row in folder.rows] or [np.zeros((0, len(names.names)))])
    told = {"frame": frame, "rotation": rotation}
    told["position_unit"] = _unit(every[:, places], felt, is_delta)
    turns = [i for i, n in enumerate(names.names) if n.rpartition("/")[2] in ("roll", "pitch", "yaw", "rx", "ry", "rz")]
    largest = float(np.abs(every[:, turns]).max()) if turns and len(every) else 0.0
    if largest > np.pi + 0.01:
        told["rotation_unit"] = guess(0.0174533, f"the largest angle is {largest:.4g}: degrees")
    return told


def _unit(places: np.ndarray, felt: evidence.Follows | None, is_delta: bool) -> Answer:
    largest = float(np.abs(places).max()) if places.size else 0.0
    if is_delta:
        if felt is not None and felt.change >= evidence.FOLLOWS and felt.factor > 0:
            unit = 1.0 if 0.8 <= felt.factor <= 1.25 else float(f"{felt.factor:.2g}")
            return guess(unit, f"what the state moves by for an entry of 1.0 ({felt.factor:.3g}), if it is in metres")
        return ask(f"how many metres does an entry of 1.0 stand for? The largest is {largest:.3g}")
    if 0 < largest <= 3:
        return guess(1, f"the furthest place is {largest:.3g}: metres")
    if 50 < largest <= 3000:
        return guess(0.001, f"the furthest place is {largest:.4g}: millimetres")
    return ask(f"how many metres does an entry of 1.0 stand for? The largest is {largest:.4g}")
