"""CALVIN: five tasks in a row at one table, told in English (arXiv:2112.03227)."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from robovlms.config.choices import ReferenceFrame, Representation, Rotation
from robovlms.config.data import ActionContract
from robovlms.errors import UserError
from robovlms.registry import SIMULATORS
from robovlms.sims.base import Episode, Goal, Simulator, Step, Task, check_action, choose_tasks, empty_views
from robovlms.sims.calvin.chains import Condition, load_chains, starts
from robovlms.sims.calvin.environment import PlayTable, compose, make_oracle
from robovlms.sims.calvin.experts import PLANS, TABLE, Expert
from robovlms.sims.calvin.installation import find_installation
from robovlms.sims.calvin.schema import MAX_STEPS, CalvinSimConfig, Renderer
from robovlms.sims.calvin.states import ROBOT, STATE_SIZE, State, initial_state, jittered
from robovlms.sims.calvin.tasks import read_criteria, read_tasks
from robovlms.types import Observation, SimulatorState

CHAIN = "chain"  # the scene of official episodes
CAMERA_KEYS = {"side": "rgb_static", "wrist": "rgb_gripper"}  # 200 px and 84 px
RENDERERS = {Renderer.tiny: "pybullet, TinyRenderer", Renderer.egl: "pybullet, EGL"}


@SIMULATORS.register("calvin")
class Calvin(Simulator):
    """CALVIN's table and Panda arm; proprio is its `robot_obs`: m, rad, and the gripper's command.

    An episode is a chain of the official thousand, by its number, or with `config.tasks` one task from the official
    initial states that allow it: number n is the nth of them, and beyond the last their blocks are moved by `seed`.

    An action is clipped to [-1, 1] and its gripper rounded to -1 or +1 before it reaches CALVIN, which takes no other.
    """

    packages = ("pybullet",)
    resets_memory = True
    views = tuple(CAMERA_KEYS)
    proprio_names = (*"xyz", "roll", "pitch", "yaw", "opening", *(f"q{joint}" for joint in range(1, 8)), "gripper")
    contract = ActionContract(
        names=["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"],
        representation=Representation.delta,
        frame=ReferenceFrame.world,
        rotation=Rotation.euler_increment,
        position_unit=0.02,
        rotation_unit=0.05,
        control_hz=30.0,
    )

    def __init__(self, config: CalvinSimConfig) -> None:
        self.config = config
        root, self._env_root = find_installation(config)
        self._tasks = choose_tasks(read_tasks(root), config, "CALVIN")
        self._check_starts()
        self._renderer = config.renderer
        self._composed = compose(config, self._env_root)
        self._oracle = make_oracle(read_criteria(root), self._env_root)
        self._world: PlayTable | None = None

    def _check_starts(self) -> None:
        """Refuse tasks that no official initial condition allows."""
        impossible = [name for name in self.config.tasks if not starts(name)]
        if impossible:
            raise UserError(
                f"sim.tasks has {', '.join(impossible)}, which no official initial state allows: it needs what an "
                "earlier task does. Leave it out; chains (sim.tasks=[]) contain it."
            )

    @property
    def renderer(self) -> str:
        """PyBullet's, on the CPU or through EGL."""
        return RENDERERS[self._renderer]

    def tasks(self) -> list[Task]:
        """List the tasks of `config.tasks`, or all 34 in the official order."""
        return self._tasks

    def max_steps(self, task: Task) -> int:
        """Return `config.max_steps`, or the official 360."""
        return self.config.max_steps or MAX_STEPS

    def episodes(self) -> list[Episode]:
        """List the official chains from number `config.seed` on, or with `config.tasks` episodes of those."""
        if self.config.tasks:
            return super().episodes()
        return [self._chain(number) for number in range(self.config.seed, self.config.seed + self.config.episodes)]

    def _chain(self, number: int) -> Episode:
        tasks = {task.name: task for task in self._tasks}
        names = load_chains()[number].tasks
        return Episode(
            scene=CHAIN,
            seed=number,
            goals=tuple(Goal(task=name, instruction=tasks[name].instruction) for name in names),
            max_steps=self.config.max_steps or MAX_STEPS,
        )

    def reset(self, episode: Episode) -> Observation:
        """Start an episode; what was played before leaves no trace.

        Raises:
            UserError: the renderer gives black or empty pictures.
        """
        return self._begin(episode, start_of(episode))

    def restore(self, episode: Episode, state: SimulatorState) -> Observation:
        """Start an episode from a recorded frame's `robot_obs` and `scene_obs`, at rest: they hold no velocities.

        Raises:
            UserError: it is no state of CALVIN's, or the renderer gives black or empty pictures.
        """
        if state.values.size != STATE_SIZE:
            raise UserError(f"a recorded state has {state.values.size} numbers, and those of CALVIN have {STATE_SIZE}.")
        robot, scene = np.split(state.values, [len(ROBOT)])
        return self._begin(episode, State(robot, scene))

    def _begin(self, episode: Episode, state: State) -> Observation:
        if self._world is None:
            self._world = PlayTable(self._composed, self._env_root)
        self._goals, self._done = episode.goals, 0
        self._note(self._world.reset(state), self._world.info)
        observation = self._observe()
        self._check_pictures(observation)
        return observation

    def step(self, action: Float32[np.ndarray, "a"]) -> Step:
        """Apply an action for 1/30 s. A goal is judged from where its predecessor was reached to now."""
        check_action(action, self.contract, "calvin")
        self._seen, info = self._current.step(executable(action))
        task = self._goals[self._done].task
        if self._oracle.get_task_info_for_set(self._start, info, {task}):
            self._done += 1
            self._note(self._seen, info)
        return Step(self._observe(), self._done, done=self._done == len(self._goals))

    def expert(self, task: Task) -> Float32[np.ndarray, "a"]:
        """Return the action of `task`'s scripted expert, which begins where the scene is when it is first asked.

        Raises:
            NotImplementedError: there is none for this task or scene.
        """
        if task.name not in PLANS or TABLE not in self._composed.scene.objects.fixed_objects.table.file:
            raise NotImplementedError(f"sim=calvin has experts at {TABLE} for {', '.join(PLANS)}, not for {task.name}")
        if task.name not in self._experts:
            self._experts[task.name] = Expert(task.name, self._seen["scene_obs"])
        return self._experts[task.name].act(self._current.target)

    def close(self) -> None:
        """End PyBullet's world; the next `reset` starts another."""
        if self._world is not None:
            self._world.close()
            self._world = None

    def _note(self, seen: dict[str, Any], info: dict[str, Any]) -> None:
        """Begin a goal: what it is judged from, and no expert has begun it."""
        self._seen, self._start = seen, info
        self._experts: dict[str, Expert] = {}

    @property
    def _current(self) -> PlayTable:
        if self._world is None:
            raise RuntimeError("call reset before step or expert")
        return self._world

    def _observe(self) -> Observation:
        pictures = self._seen["rgb_obs"]
        goal = self._goals[min(self._done, len(self._goals) - 1)]
        return Observation(
            frames={view: np.ascontiguousarray(pictures[key], dtype=np.uint8) for view, key in CAMERA_KEYS.items()},
            instruction=goal.instruction,
            proprio=self._seen["robot_obs"].astype(np.float32),
        )

    def _check_pictures(self, observation: Observation) -> None:
        if empty := empty_views(observation):
            raise UserError(
                f"sim.renderer={self._renderer} ({self.renderer}) gives empty pictures: {empty} has "
                "one colour. With egl, check the GPU's driver (libEGL), or set sim.renderer=tiny if the policy was "
                "trained on its pictures; with tiny, install PyBullet again."
            )


def start_of(episode: Episode) -> State:
    """Return the state that an episode starts from."""
    if episode.scene == CHAIN:
        return initial_state(load_chains()[episode.seed].condition)
    conditions: list[Condition] = starts(episode.scene)
    condition = conditions[episode.seed % len(conditions)]
    official = initial_state(condition)
    return official if episode.seed < len(conditions) else jittered(official, condition, episode.seed)


def executable(action: Float32[np.ndarray, "a"]) -> Float64[np.ndarray, "a"]:
    """Return the action as CALVIN takes it: within [-1, 1], the gripper -1 (close) or +1 (open)."""
    clipped = np.clip(action.astype(np.float64), -1, 1)
    clipped[-1] = 1.0 if action[-1] > 0 else -1.0
    return clipped
