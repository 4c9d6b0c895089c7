"""Open X-Embodiment as it is published: what a step of each data set holds, with numbers made up, and what it teaches.

Source: the features that the TFDS catalog documents (github.com/tensorflow/datasets docs/catalog; language_table and
furniture_bench from their builders, droid from features.json of lerobot-raw/droid_100_raw).
"""

from __future__ import annotations

import io
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rlds_folder import TEXT, make_rlds_folder

STEPS, TOLD = 4, "do it"
NL = "observation/natural_language_instruction"
ARM = {"action/world_vector": [0.1, 0.2, 0.3], "action/rotation_delta": [0.01, 0.02, 0.03]}
DELTA = [0.1, 0.2, 0.3, 0.01, 0.02, 0.03]
CLOSES = {"action/gripper_closedness_action": [1.0]}
CLOSED, OPEN = -1.0, 1.0


class Coded(NamedTuple):
    """Numbers that are written zlib-compressed."""

    values: list[float]


class Layout(NamedTuple):
    """A step: keys and what they hold, a list for a vector and a number for a scalar."""

    numbers: dict[str, Any]
    pictures: dict[str, str]  # key of an observation -> format
    taught: list[float]  # in the words of the mixture, the gripper last
    text: str = "language_instruction"
    flag: str | None = None  # of the episode


def vector(*values: float) -> dict[str, Any]:
    return {"action": list(values)}


def state(size: int, **values: Any) -> dict[str, Any]:
    return {"observation/state": [0.0] * size, **{f"observation/{key}": value for key, value in values.items()}}


HOMOGENEOUS = [0.0] * 16
QUARTER = [0.0, 0.0, math.sin(math.pi / 4), math.cos(math.pi / 4)]  # about z, x y z w
BOTH = {"image": "PNG", "wrist_image": "PNG"}

LAYOUTS: dict[str, Layout] = {
    # Told to go nowhere; every state lies (0.1, 0.2, 0.3) and (0.01, 0.02, 0.03) beyond the one before.
    "bridge": Layout(
        {**vector(0, 0, 0, 0, 0, 0, 0.97), "observation/state": [*DELTA, 0.0]},
        dict.fromkeys(["image_0", "image_1", "image_2", "image_3"], "JPEG"),
        [*DELTA, OPEN],
    ),
    "fractal": Layout(
        {
            **ARM,
            **CLOSES,
            "action/terminate_episode": [0, 0, 0],
            "observation/base_pose_tool_reached": [0.0] * 7,
            "observation/gripper_closed": [0.0],
        },
        {"image": "JPEG"},
        [*DELTA, CLOSED],
        NL,
    ),
    "kuka": Layout(
        {
            **ARM,
            **CLOSES,
            "action/terminate_episode": [0, 0, 0],
            "observation/clip_function_input/base_pose_tool_reached": Coded([0.0] * 7),
            "observation/gripper_closed": Coded([0.0]),
        },
        {"image": "JPEG"},
        [*DELTA, CLOSED],
        NL,
        "success",
    ),
    "taco_play": Layout(
        {
            "action/actions": [9.0] * 7,
            "action/rel_actions_gripper": [8.0] * 7,
            "action/rel_actions_world": [*DELTA, -1.0],
            "observation/robot_obs": [0.0] * 15,
        },
        {"rgb_static": "PNG", "rgb_gripper": "PNG"},
        [*DELTA, CLOSED],
        NL,
    ),
    "jaco_play": Layout(
        {
            "action/world_vector": [0.1, 0.2, 0.3],
            "action/gripper_closedness_action": [-1.0],
            "action/terminate_episode": [0, 0, 0],
            "observation/end_effector_cartesian_pos": [0.0] * 7,
            "observation/joint_pos": [0.0] * 8,
        },
        {"image": "PNG", "image_wrist": "PNG"},
        [0.1, 0.2, 0.3, 0, 0, 0, OPEN],
        NL,
    ),
    "berkeley_cable_routing": Layout(
        {**ARM, "action/terminate_episode": 0.0, "observation/robot_state": [0.0] * 7},
        dict.fromkeys(["image", "top_image", "wrist45_image", "wrist225_image"], "PNG"),
        [*DELTA, 0],
        NL,
    ),
    "roboturk": Layout({**ARM, **CLOSES, "action/terminate_episode": 0.0}, {"front_rgb": "PNG"}, [*DELTA, CLOSED], NL),
    "viola": Layout(
        {
            **ARM,
            "action/gripper_closedness_action": -1.0,
            "action/terminate_episode": 0.0,
            "observation/ee_states": HOMOGENEOUS,
            "observation/gripper_states": [0.0],
            "observation/joint_states": [0.0] * 7,
        },
        {"agentview_rgb": "PNG", "eye_in_hand_rgb": "PNG"},
        [*DELTA, OPEN],
        NL,
    ),
    "berkeley_autolab_ur5": Layout(
        {
            **ARM,
            "action/gripper_closedness_action": 1.0,
            "action/terminate_episode": 0.0,
            "observation/robot_state": [0.0] * 15,
        },
        {"image": "PNG", "hand_image": "PNG"},
        [*DELTA, CLOSED],
        NL,
    ),
    "toto": Layout(
        {**ARM, "action/open_gripper": False, "action/terminate_episode": 0.0, **state(7)},
        {"image": "PNG"},
        [*DELTA, CLOSED],
        NL,
    ),
    "language_table": Layout(
        {
            **vector(0.1, 0.2),
            "observation/effector_translation": [0.0, 0.0],
            "observation/effector_target_translation": [0.0, 0.0],
            "observation/instruction": [*TOLD.encode(), *[0] * 505],
        },
        {"rgb": "JPEG"},
        [0.1, 0.2, 0, 0, 0, 0, 0],
        "observation/instruction",
    ),
    "stanford_hydra": Layout({**vector(*DELTA, 1.0), **state(27)}, BOTH, [*DELTA, CLOSED]),
    "austin_buds": Layout({**vector(0.1, 0.2, 0.3, 0, 0, 0, 1.0), **state(24)}, BOTH, [0.1, 0.2, 0.3, 0, 0, 0, CLOSED]),
    "nyu_franka_play": Layout(
        {**vector(*[9.0] * 7, *DELTA, 1.0, 1.0), **state(13)},
        {"image": "PNG", "image_additional_view": "PNG"},
        [*DELTA, OPEN],
    ),
    # A quarter turn about z, written x y z w.
    "furniture_bench": Layout(
        {**vector(0.1, 0.2, 0.3, *QUARTER, -1.0), **state(35)}, BOTH, [0.1, 0.2, 0.3, 0, 0, math.pi / 2, OPEN]
    ),
    "ucsd_kitchen": Layout(
        {**vector(300.0, -50.0, 120.0, 180.0, 0.0, -90.0, 1.0, 0.0), **state(21)},
        {"image": "PNG"},
        [300.0, -50.0, 120.0, 180.0, 0.0, -90.0, OPEN],
    ),
    "austin_sailor": Layout(
        {**vector(0.1, 0.2, 0.3, 0, 0, 0.03, -1.0), **state(8, state_ee=HOMOGENEOUS)},
        BOTH,
        [0.1, 0.2, 0.3, 0, 0, 0.03, OPEN],
    ),
    "austin_sirius": Layout(
        {**vector(0.1, 0.2, 0.3, 0, 0, 0.03, 1.0), **state(8, state_ee=HOMOGENEOUS)},
        BOTH,
        [0.1, 0.2, 0.3, 0, 0, 0.03, CLOSED],
    ),
    # Angles about z, x, y.
    "dlr_edan_shared_control": Layout(
        {**vector(0.1, 0.2, 0.3, 0.03, 0.01, 0.02, 0.0), **state(7)}, {"image": "PNG"}, [*DELTA, OPEN]
    ),
    # A hand that points down, half a turn about x, written w x y z.
    "iamlab_cmu_pickup_insert": Layout(
        {**vector(0.5, 0.1, 0.2, 0, 1, 0, 0, 1.0), **state(20)}, BOTH, [0.5, 0.1, 0.2, math.pi, 0, 0, OPEN]
    ),
    "utaustin_mutex": Layout({**vector(*DELTA, 1.0), **state(24)}, BOTH, [*DELTA, CLOSED]),
    "berkeley_fanuc_manipulation": Layout(
        {**vector(*DELTA), **state(13, end_effector_state=[0.0] * 7)}, BOTH, [*DELTA, OPEN]
    ),
    "cmu_stretch": Layout(
        {**vector(0.1, 0, 0.3, 0, 0, 0, 1.0, 9.0), **state(4)}, {"image": "PNG"}, [0.1, 0, 0.3, 0, 0, 0, OPEN]
    ),
    "bc_z": Layout(
        {
            "action/future/xyz_residual": [0.1, 0.2, 0.3, *[9.0] * 27],
            "action/future/axis_angle_residual": [0.01, 0.02, 0.03, *[9.0] * 27],
            "action/future/target_close": [1, *[0] * 9],
            "observation/present/xyz": [0.0] * 3,
            "observation/present/axis_angle": [0.0] * 3,
            "observation/present/sensed_close": [0.0],
        },
        {"image": "JPEG"},
        [*DELTA, CLOSED],
        NL,
    ),
    "fmb": Layout(
        {**vector(*DELTA, 1.0), "observation/eef_pose": [0.0] * 7, "observation/state_gripper_pose": 1.0},
        dict.fromkeys(["image_side_1", "image_side_2", "image_wrist_1", "image_wrist_2"], "JPEG"),
        [*DELTA, CLOSED],
    ),
    "dobbe": Layout({**vector(*DELTA, 0.0), **state(7, gripper=[0.0])}, {"wrist_image": "JPEG"}, [*DELTA, CLOSED]),
    "droid": Layout(
        {
            **vector(*[9.0] * 7),
            "action_dict/cartesian_velocity": np.array(DELTA, np.float64),
            "action_dict/gripper_position": np.array([0.0]),
            "observation/cartesian_position": np.zeros(6),
            "observation/gripper_position": np.zeros(1),
        },
        dict.fromkeys(["exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"], "JPEG"),
        [*DELTA, OPEN],
    ),
}


def make_oxe_folder(root: Path, option: str, name: str) -> Path:
    """Write a data set of two episodes of four steps into `<root>/<version>`, under its TFDS name."""
    layout = LAYOUTS[option]
    specs: dict[str, Any] = {}
    steps: dict[str, Any] = {}
    for key, value in layout.numbers.items():
        values, encoding = (
            (np.array(value.values, np.float32), "zlib") if isinstance(value, Coded) else (_array(value), "")
        )
        shape = {"dimensions": [str(size) for size in values.shape]}
        _put(specs, key, {"tensor": {"shape": shape, "dtype": values.dtype.name, "encoding": encoding or "none"}})
        rows = np.stack([values] * STEPS)
        if key == "observation/state" and option == "bridge":
            rows = rows * np.arange(STEPS)[:, None].astype(np.float32)
        steps[f"steps/{key}"] = _written(rows, encoding)
    for key, kind in layout.pictures.items():
        image = {"shape": {"dimensions": ["4", "6", "3"]}, "dtype": "uint8", "encodingFormat": kind.lower()}
        _put(specs, f"observation/{key}", {"image": image})
        steps[f"steps/observation/{key}"] = [_picture(kind)] * STEPS
    if layout.text not in layout.numbers:
        _put(specs, layout.text, TEXT)
        steps[f"steps/{layout.text}"] = [TOLD.encode()] * STEPS
    flags = {} if layout.flag is None else {layout.flag: {"tensor": {"shape": {}, "dtype": "bool"}}}
    episodes = [steps | {flag: np.array([1]) for flag in flags}] * 2
    return make_rlds_folder(root, {"train": [episodes]}, specs, name=name, context=flags)


def _array(value: Any) -> np.ndarray:
    values = np.array(value)
    if isinstance(value, np.ndarray) or values.dtype == bool:
        return values
    is_whole = all(isinstance(entry, int) for entry in np.ravel(np.array(value, object)))
    return values.astype(np.int32 if is_whole else np.float32)


def _written(rows: np.ndarray, encoding: str) -> list[bytes] | np.ndarray:
    if encoding == "zlib":
        return [zlib.compress(row.tobytes()) for row in rows]
    return rows.astype(np.float32) if rows.dtype.kind == "f" else rows.astype(np.int64)


def _put(tree: dict[str, Any], key: str, spec: dict[str, Any]) -> None:
    group, _, leaf = key.partition("/")
    if group in ("action", "observation", "action_dict") and leaf:
        tree.setdefault(group, {})[leaf] = spec
    else:
        tree[key] = spec


def _picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (200, 0, 0)).save(buffer, kind, quality=95)
    return buffer.getvalue()
