"""Recordings of LIBERO's simulator as LIBERO's own files have them, by scripted experts of the simulator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from robovlms.sims.libero.simulator import Libero


def record_libero(simulator: Libero, folder: Path, numbers: Sequence[int]) -> Path:
    """Write `<task>_demo.hdf5` of every task with an episode from each of these initial states.

    As in LIBERO's files a frame is taken after its action, pictures have the bottom row first, a row of `states` is
    from before the action, and the gripper closes at +1. They end with the step that solves the task.
    """
    for task in simulator.tasks():
        with h5py.File(folder / f"{task.name.rpartition('/')[2]}_demo.hdf5", "w") as file:
            data = file.create_group("data")
            data.attrs["problem_info"] = json.dumps({"language_instruction": task.instruction})
            data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
            data.attrs["num_demos"] = len(numbers)
            for i, number in enumerate(numbers):
                _record(simulator, task, number, data.create_group(f"demo_{i}"))
    return folder


def _record(simulator: Libero, task, number: int, group: h5py.Group) -> None:
    simulator.reset(simulator.episode(task, number))
    scene = simulator._current
    rows: dict[str, list[np.ndarray]] = {key: [] for key in ("states", "actions", "seen", "agentview", "eye")}
    solved = 0
    while not solved and len(rows["actions"]) < 150:
        rows["states"].append(scene.sim.get_state().flatten())
        action = simulator.expert(task)
        observation, solved, _, _ = simulator.step(action)
        rows["actions"].append(np.append(action[:6], -action[6]).astype(np.float64))
        rows["seen"].append(observation.proprio)
        rows["agentview"].append(observation.frames["side"][::-1, ::-1])
        rows["eye"].append(observation.frames["wrist"][::-1, ::-1])
    states = np.stack(rows["states"])
    seen = np.stack(rows["seen"])
    ends = np.zeros(len(states), np.uint8)
    ends[-1] = solved
    group.attrs["model_file"] = scene.sim.model.get_xml()
    group.attrs["init_state"] = states[0]
    members = {"states": states, "actions": np.stack(rows["actions"]), "dones": ends, "rewards": ends}
    members |= {"obs/ee_states": seen[:, :6], "obs/gripper_states": seen[:, 6:]}
    members |= {"obs/agentview_rgb": np.stack(rows["agentview"]), "obs/eye_in_hand_rgb": np.stack(rows["eye"])}
    for key, values in members.items():
        group[key] = values
