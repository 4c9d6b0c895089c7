"""Demonstrations of LIBERO and robomimic: HDF5 files with one group a demonstration.

    /data                       attributes problem_info, env_args (JSON), num_demos, total
    /data/demo_0                attribute ep_meta (JSON): RoboCasa's, with the instruction as `lang`
    /data/demo_0/actions        T x 7: position and axis-angle deltas, controller units; gripper -1 open, +1 closed
    /data/demo_0/states         T x n: MuJoCo's time, positions and velocities before each action; attribute model_file
    /data/demo_0/obs/...        T rows each: agentview_rgb, eye_in_hand_rgb, ee_states, gripper_states (LIBERO);
                                agentview_image, robot0_eef_pos (robomimic)

LIBERO files have no frame from before the first action: frame i was taken after action i, and LIBERO itself trains on
such pairs.
Source: github.com/Lifelong-Robot-Learning/LIBERO scripts/create_dataset.py; github.com/ARISE-Initiative/robomimic.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from robovlms.data.files.hdf5 import child, dataset, is_group, naming, read_pictures, read_rows
from robovlms.data.files.hdf5_reader import Demonstration, Hdf5Reader
from robovlms.data.libero.schema import LiberoDataConfig
from robovlms.errors import UserError
from robovlms.registry import DATASETS
from robovlms.types import SimulatorState

logger = logging.getLogger(__name__)


@DATASETS.register("libero")
class LiberoReader(Hdf5Reader):
    """Demonstrations of one file, or of every HDF5 file of a folder; a file is a task to split by.

    Where a folder has files `*_demo.hdf5`, as LIBERO's suites do, the others are left out.

    Pictures are turned by 180 degrees with `data.flip`: LIBERO records them in OpenGL's order, bottom row first.
    OpenVLA and openpi turn them so, which also mirrors them, and their checkpoints expect that. robomimic's are
    upright: set it to false. A `mask` group is ignored: splits are the same as for every other data set.
    """

    name = "libero"
    image_group = "obs"
    without_pictures = (
        "robosuite and robomimic record states, from which pictures are rendered first: robomimic's "
        "dataset_states_to_obs.py --camera_names agentview robot0_eye_in_hand writes a file with them."
    )
    _config: LiberoDataConfig

    def _files(self, root: Path) -> list[Path]:
        if root.is_file():
            return [root]
        if not root.exists():
            raise FileNotFoundError(
                f"data.root={root} does not exist: set it to a HDF5 file, or a folder of *_demo.hdf5."
            )
        found = sorted(root.glob("*_demo.hdf5")) or sorted(p for p in root.iterdir() if p.suffix in (".hdf5", ".h5"))
        if found:
            return found
        deeper = {str(path.parent) for pattern in ("*/*.hdf5", "*/*.h5") for path in root.glob(pattern)}
        hint = f"Set data.root={' or '.join(sorted(deeper)[:8])}." if deeper else "Set data.root to a suite's folder."
        raise FileNotFoundError(f"data.root={root} has no *.hdf5. {hint}")

    def _groups(self, path: Path, file: Any) -> list[str]:
        return [f"data/{name}" for name in _demo_names(path, _data(file))]

    def _task(self, demo: Demonstration) -> str:
        return demo.file.stem

    def _pictures(self, view: str, found: Any, steps: Int64[np.ndarray, "w"]) -> UInt8[np.ndarray, "w _h _x c"]:
        pictures = read_pictures(found, steps)
        return np.ascontiguousarray(pictures[:, ::-1, ::-1]) if self._config.flip else pictures

    def simulator_state(self, episode: int) -> SimulatorState | None:
        """Return row 0 of `states` with the scene in `model_file`; `dones` or `rewards` say whether it was solved."""
        demo = self._demos[episode]
        with naming(demo.file):
            group = self._group(demo)
            if child(group, "states") is None:
                return None
            values = read_rows(dataset(group, "states"), np.arange(1))[0].astype(np.float64).reshape(-1)
            ends = [dataset(group, key)[()] for key in ("dones", "rewards") if child(group, key) is not None]
            model = group.attrs.get("model_file")
            model = model.decode("utf-8") if isinstance(model, bytes) else model
        solved = any(bool((end > 0).any()) for end in ends) if ends else None
        return SimulatorState(values=values, model=model if isinstance(model, str) else None, solved=solved)

    def _instruction(self, path: Path, file: Any, group: str) -> str:
        data, text = _data(file), self._config.instruction
        if text is None:
            text = told_in_episode(file[group]) if is_group(child(file, group)) else None
        if text is None and "problem_info" in data.attrs:
            told: Any = _json_attribute(path, data, "problem_info").get("language_instruction")
            is_list = isinstance(told, list) and all(isinstance(t, str) for t in told)
            text = "".join(told).strip('"') if is_list else told
        elif text is None:
            text = instruction_of(path)
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{path} says no instruction: set data.instruction='<what the robot does>'.")
        return text.strip().strip('"')

    def _rate(self, path: Path, file: Any) -> float | None:
        data = _data(file)
        if "env_args" not in data.attrs:
            return None
        options = _json_attribute(path, data, "env_args").get("env_kwargs")
        hz = options.get("control_freq") if isinstance(options, dict) else None
        return float(hz) if isinstance(hz, int | float) else None


def told_in_episode(demo: Any) -> str | None:
    """Return the instruction in a demonstration's own `ep_meta`, as RoboCasa records it; None: there is none."""
    try:
        told = json.loads(demo.attrs.get("ep_meta", "{}"))
    except (ValueError, TypeError, RecursionError):
        return None
    text = told.get("lang") if isinstance(told, dict) else None
    return text if isinstance(text, str) and text.strip() else None


def instruction_of(path: Path) -> str | None:
    """Return the instruction in a name such as KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5; None: not of this form.

    Source: LIBERO libero/benchmark/__init__.py, grab_language_from_filename.
    """
    match = re.fullmatch(r"(?:[A-Z_]+SCENE\d+_)?(.+)_demo", path.stem)
    return match[1].replace("_", " ") if match else None


def _data(file: Any) -> Any:
    data = child(file, "data")
    if not is_group(data):
        raise UserError(f"{file.filename} has no group /data: it is not a file of LIBERO or robomimic.")
    return data


def _demo_names(path: Path, data: Any) -> list[str]:
    found = sorted((int(match[1]), name) for name in data if (match := re.fullmatch(r"demo_(\d{1,9})", name)))
    if not found:
        raise UserError(f"{path} has no demo_0, demo_1, ... in /data.")
    told = data.attrs.get("num_demos")
    if told is not None and not np.array_equal(told, len(found)):
        logger.warning("%s says num_demos=%s, but holds %d: the latter counts", path, told, len(found))
    return [name for _, name in found]


def _json_attribute(path: Path, data: Any, name: str) -> dict[str, Any]:
    try:
        content = json.loads(data.attrs[name])
        if not isinstance(content, dict):
            raise TypeError("not an object")
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: attribute {name} of /data must be a JSON object ({error}).") from error
    return content
