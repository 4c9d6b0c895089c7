"""Folders as owners of robots have them: LeRobot of any joints, HDF5 of robomimic and of ALOHA; made up, small. And
what is found out of them, composed and opened.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from composing import composed, open_windows
from lerobot_folder import CAMERA, encode, gray, write_v2

from robovlms.cli.jobs import to_dataclass
from robovlms.cli.option_files import OptionFile, store
from robovlms.config.run import TrainConfig
from robovlms.inspection.discovery.finding import find_data

STEPS = 24
G1 = [
    f"kLeft{joint}"
    for joint in ("ShoulderPitch", "ShoulderRoll", "ShoulderYaw", "Elbow", "WristRoll", "WristPitch", "WristYaw")
]
G1 += [f"kLeftHand{finger}" for finger in ("Thumb0", "Thumb1", "Thumb2", "Middle0", "Middle1", "Index0")]
G1 += [name.replace("Left", "Right") for name in G1]


def paths_of(width: int, steps: int = STEPS, seed: int = 0, size: float = 1.0) -> np.ndarray:
    """Return smooth joint targets that begin away from 0."""
    generator = np.random.default_rng(seed)
    time = np.linspace(0, 1, steps)[:, None]
    return size * (generator.uniform(0.3, 1, width) + 0.4 * np.sin(time * generator.uniform(1, 3, width)))


def write_lerobot(
    root: Path,
    names: Any,
    actions: np.ndarray,
    states: np.ndarray | None = None,
    *,
    cameras: Sequence[str] = (CAMERA,),
    robot: str = "unknown",
    extra: dict[str, tuple[np.ndarray, Any]] | None = None,
    tasks: Sequence[str] = ("fold the towel",),
    episodes: int = 3,
    key: str = "action",
) -> Path:
    """Write v2.1 with embedded pictures: `episodes` alike, `states` by default the actions one step late.

    Args:
        names: of the entries, as info.json has them.
        extra: columns by key, with their names.
    """
    if states is None:
        states = np.concatenate([actions[:1], actions[:-1]])
    vectors = {key: (actions, names), "observation.state": (states, names)} | (extra or {})
    steps = len(actions)
    columns = {
        name: pa.array(list(map(list, rows.tolist())), pa.list_(pa.float32(), rows.shape[1]))
        for name, (rows, _) in vectors.items()
    }
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": encode(gray(step)), "path": None} for step in range(steps)]
    columns |= {camera: pa.array(cells, kind) for camera in cameras}
    write_v2(root, lengths=[steps] * episodes, columns=columns, cells=[[None] * steps] * episodes, tasks=tasks)
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    if key != "action":
        del info["features"]["action"]
    del info["features"][CAMERA]
    info["features"] |= {camera: {"dtype": "image", "shape": [32, 32, 3], "names": None} for camera in cameras}
    info["features"] |= {
        name: {"dtype": "float32", "shape": [rows.shape[1]], "names": told} for name, (rows, told) in vectors.items()
    }
    path.write_text(json.dumps(info | {"robot_type": robot}))
    return root


OSC = {"type": "OSC_POSE", "output_max": [0.05] * 3 + [0.5] * 3, "control_delta": True}


def write_robomimic(
    path: Path, *, controller: Any = OSC, demos: int = 3, width: int = 7, pictures: bool = True, **changes: Any
) -> Path:
    """Write a file of robomimic's with pictures: /data/demo_0/obs/agentview_image, no instruction."""
    import h5py

    generator = np.random.default_rng(0)
    options = {"control_freq": 20, "controller_configs": controller, "robots": ["Panda"]} | changes
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": options})
        for number in range(demos):
            actions = generator.uniform(-1, 1, (STEPS, width))
            actions[:, -1] = np.where(np.arange(STEPS) < 12, -1, 1)
            pixels = generator.integers(0, 255, (STEPS, 16, 16, 3), dtype=np.uint8)
            members = {
                "actions": actions,
                "states": np.zeros((STEPS, 9)),
                "obs/robot0_eef_pos": paths_of(3, size=0.3),
                "obs/robot0_eef_quat": np.tile([0.0, 0.0, 0.0, 1.0], (STEPS, 1)),
                "obs/robot0_gripper_qpos": np.zeros((STEPS, 2)),
                "obs/robot0_joint_pos": paths_of(7),
            }
            if pictures:
                views = {"obs/agentview_image": pixels, "obs/robot0_eye_in_hand_image": pixels}
                members |= views | {f"next_{key}": value for key, value in views.items()}
            for key, value in members.items():
                data.create_dataset(f"demo_{number}/{key}", data=value)
    return path


def write_aloha(root: Path, *, episodes: int = 3, width: int = 14, cameras: Sequence[str] = ("cam_high",)) -> Path:
    """Write files of ALOHA: joints, their grippers from 0 to 1."""
    import h5py

    root.mkdir(parents=True)
    for number in range(episodes):
        actions = paths_of(width, seed=number)
        actions[:, [width // 2 - 1, width - 1]] = np.linspace(0, 1, STEPS)[:, None]
        with h5py.File(root / f"episode_{number}.hdf5", "w") as file:
            file.attrs["sim"] = False
            file["action"] = actions
            file["observations/qpos"] = np.concatenate([actions[:1], actions[:-1]])
            file["observations/qvel"] = np.zeros_like(actions)
            for camera in cameras:
                file[f"observations/images/{camera}"] = np.zeros((STEPS, 16, 16, 3), np.uint8)
    return root


def written(root: Path) -> OptionFile:
    """Return the data config of a folder, as `data=` takes it."""
    return store("data", "robot.yaml", find_data(root).text)


def values(file: OptionFile) -> Any:
    """Return the composed `data`, typed where it is answered."""
    return composed(f"data={file.name}", "view=all", "window=w1_c10").data


def opened(file: OptionFile, *answers: str) -> Any:
    """Return the first training window with the answers given on the command line."""
    config = composed(f"data={file.name}", "view=all", "window=w1_c10", "data.num_workers=0", *answers)
    given = {answer.partition("=")[0] for answer in answers}
    questions = {f"data.{key}": text for key, text in file.questions.items() if f"data.{key}" not in given}
    return open_windows(to_dataclass(config, TrainConfig, questions), "train")[0]
