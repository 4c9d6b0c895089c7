"""Meta-World's 50 tasks (MT50) with a language instruction each, two cameras, and a scripted expert for every task.

Source: Meta-World 3.1.1 (github.com/Farama-Foundation/Metaworld), arXiv:1910.10897. The benchmark has no language; the
instructions are ours. Task names are Meta-World's without the version suffix: `drawer-open` is its `drawer-open-v3`.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from robovlms.config.choices import ReferenceFrame, Representation
from robovlms.config.data import ActionContract
from robovlms.registry import SIMULATORS
from robovlms.sims.base import Episode, Simulator, Step, Task, check_action, choose_tasks
from robovlms.sims.metaworld_tasks import TASKS
from robovlms.sims.rendering import (
    check_pictures,
    make_renderer,
    out_of_sight_left_out,
    renderer_name,
    simulator_imports,
)
from robovlms.sims.schemas.metaworld import MAX_STEPS, MetaWorldSimConfig
from robovlms.types import Observation

with simulator_imports("metaworld", "metaworld"):
    import mujoco
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

MARKED_GOALS = {
    "coffee-pull", "pick-out-of-hole", "pick-place", "pick-place-wall", "plate-slide-back", "plate-slide-back-side",
    "push", "push-back", "push-wall", "reach", "reach-wall", "stick-pull", "stick-push",
}  # fmt: skip
"""Tasks whose goal is a free position, seen only as a coloured marker. Elsewhere markers would give the answer away."""

GRIP_EFFORT = 0.6  # what gripper -1 executes; at 1.0 the fingers squeeze objects out (basketball 0 % instead of 100 %)
SOFT_GRIP_EFFORT = {"peg-unplug-side": 0.1, "pick-out-of-hole": 0.1}
"""Source: the efforts of metaworld.policies, mostly 0.6 and for these tasks 0.1."""

METRES_PER_STEP = 0.01  # that an action of 1 moves the hand's target by in each of them


@SIMULATORS.register("metaworld")
class MetaWorld(Simulator):
    """Meta-World's Sawyer arm, seen from the `side` and the `wrist`; proprio is hand x, y, z (m) and opening [0, 1].

    The hand does not turn: the three rotation entries of an action are ignored. An action is held for the
    `80 / config.control_hz` simulation steps until the next. Scene and renderer are kept while the task stays the
    same and cost about a second when it changes.
    """

    packages = ("metaworld", "mujoco")
    views = ("side", "wrist")
    proprio_names = ("x", "y", "z", "opening")

    def __init__(self, config: MetaWorldSimConfig) -> None:
        self.config = config
        self._tasks = choose_tasks(TASKS, config, "Meta-World")
        self.contract = ActionContract(
            names=["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"],
            representation=Representation.delta,
            frame=ReferenceFrame.world,
            position_unit=round(METRES_PER_STEP * config.repeat, 9),
            control_hz=config.control_hz,
        )
        self._repeat, self._image_size = config.repeat, config.image_size
        self._scene: _Scene | None = None
        self._instruction = ""

    @property
    def renderer(self) -> str:
        """MuJoCo's, through the library that `MUJOCO_GL` names."""
        return renderer_name()

    def tasks(self) -> list[Task]:
        """List the tasks of `config.tasks` in that order, or all 50 by name."""
        return self._tasks

    def max_steps(self, task: Task) -> int:
        """Return `config.max_steps`, or Meta-World's horizon of 500 simulation steps."""
        return self.config.max_steps or MAX_STEPS // self._repeat

    def reset(self, episode: Episode) -> Observation:
        """Start an episode with objects and goal placed by its seed."""
        (goal,) = episode.goals
        if self._scene is None or self._scene.task != goal.task:
            self.close()
            self._scene = _Scene(goal.task, self._image_size)
        self._scene.reset(episode.seed)
        self._instruction, self._solved = goal.instruction, False
        observation = self._observe()
        check_pictures(observation, "metaworld")
        return observation

    def step(self, action: Float32[np.ndarray, "a"]) -> Step:
        """Hold one 7-D action, clipped to [-1, 1], for 1 / control_hz seconds and render. Success at any simulation
        step in between counts.
        """
        check_action(action, self.contract, "metaworld")
        solved = [self._current.step(action[:3], float(action[6])) for _ in range(self._repeat)]
        self._solved = self._solved or any(solved)
        return Step(self._observe(), int(self._solved))

    def expert(self, task: Task) -> Float32[np.ndarray, "a"]:
        """Return the action of `task`'s scripted expert: arm within [-1, 1], gripper exactly -1 (close) or +1 (open).

        Source: metaworld.policies. Its effort is reduced to its sign (0 opens): the action says what is executed.
        """
        arm, effort = np.split(self._current.expert(task.name), [3])
        gripper = -1.0 if effort > 0 else 1.0
        return np.array([*np.clip(arm, -1, 1), 0, 0, 0, gripper], dtype=np.float32)

    def close(self) -> None:
        """Free scene and renderer; the next `reset` builds new ones."""
        if self._scene is not None:
            self._scene.close()
            self._scene = None

    @property
    def _current(self) -> _Scene:
        if self._scene is None:
            raise RuntimeError("call reset before step or expert")
        return self._scene

    def _observe(self) -> Observation:
        scene = self._current
        proprio = scene.state[:4].astype(np.float32)
        return Observation(frames=scene.render(), instruction=self._instruction, proprio=proprio)


class _Scene:
    """One task's physics, expert and renderer.

    MuJoCo's renderer is used directly because Gymnasium's `render` serves one camera. Without shadows, reflections and
    multisampling software rendering is 7-8 times faster.
    """

    def __init__(self, task: str, image_size: int) -> None:
        self.task = task
        self.state: Float64[np.ndarray, "o"] = np.zeros(0)  # Meta-World's 39 numbers, the expert's observation
        self._env = _make_env(task)
        self._grip_effort = SOFT_GRIP_EFFORT.get(task, GRIP_EFFORT)
        self._experts: dict[str, Any] = {}
        self._options = mujoco.MjvOption()
        if task not in MARKED_GOALS:
            self._options.sitegroup[:] = 0
        self._renderer = make_renderer(self._env.model, image_size, "metaworld", shadows=False)

    def reset(self, seed: int) -> None:
        """Place objects and goal by `seed`, as Meta-World's benchmarks do: draw a layout, then start frozen to it."""
        self._env.seed(seed)
        self._env._freeze_rand_vec = False
        self._env.reset()
        self._env._freeze_rand_vec = True
        self.state, _ = self._env.reset()
        mujoco.mj_forward(self._env.model, self._env.data)  # bodies were moved: the first image must show it

    def step(self, arm: Float32[np.ndarray, "3"], gripper: float) -> bool:
        """Move by `arm`, with the gripper from -1 (closed) to +1 (open); tell whether the task is solved now.

        Meta-World's gripper effort has the opposite sign: positive closes.
        """
        effort = -gripper * (self._grip_effort if gripper < 0 else 1.0)
        self.state, _, _, _, info = self._env.step(np.append(arm, np.float32(effort)))
        return bool(info["success"])

    def expert(self, task: str) -> Float32[np.ndarray, "4"]:
        """Return the raw dx, dy, dz and gripper effort of `task`'s expert."""
        if task not in self._experts:
            make_expert: Any = ENV_POLICY_MAP[f"{task}-v3"]
            self._experts[task] = make_expert()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Constant")  # "may be too high": we clip
            effort: Float32[np.ndarray, "4"] = self._experts[task].get_action(self.state)
        return effort

    def render(self) -> dict[str, UInt8[np.ndarray, "_h _x c"]]:
        """Draw both views; the side camera (corner4) hangs upside down and is turned back."""
        return {"side": self._draw("corner4")[::-1, ::-1].copy(), "wrist": self._draw("gripperPOV")}

    def close(self) -> None:
        """Free the renderer, which must happen before another is made."""
        self._renderer.close()
        self._env.close()

    def _draw(self, camera: str) -> UInt8[np.ndarray, "_h _x c"]:
        with out_of_sight_left_out(self._env.model, self._env.data, camera):
            self._renderer.update_scene(self._env.data, camera=camera, scene_option=self._options)
        image: UInt8[np.ndarray, "_h _x c"] = self._renderer.render()
        return image


def _make_env(task: str) -> Any:
    """Build Meta-World's environment with the goal in the expert's observation and layouts drawn from its own seed."""
    env = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
    env._partially_observable = False
    del env.sawyer_observation_space  # cached; it depends on what is observable
    env._set_task_called = True
    env.seeded_rand_vec = True
    return env
