"""SimplerEnv (arXiv:2405.05941): policies of real robots, scored in simulations of what those recorded.

Source: github.com/simpler-env/SimplerEnv simpler_env/evaluation/maniskill2_evaluator.py; for `wrapper=robovlms`
github.com/Robot-VLAs/RoboVLMs eval/simpler.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from scipy.spatial.transform import Rotation

from robovlms.errors import UserError
from robovlms.registry import SIMULATORS
from robovlms.sims.base import Episode, Goal, Simulator, Step, Task, check_action, choose_tasks, empty_views
from robovlms.sims.simpler import google_robot, widowx
from robovlms.sims.simpler.environment import build, check_installed
from robovlms.sims.simpler.gripper import start_gripper
from robovlms.sims.simpler.schema import Robot, SimplerSimConfig, SuccessRule, Wrapper
from robovlms.sims.simpler.suite import Setting
from robovlms.types import Observation

SUITES = {Robot.widowx: widowx.SUITE, Robot.google_robot: google_robot.SUITE}


@SIMULATORS.register("simpler")
class Simpler(Simulator):
    """SimplerEnv's WidowX or Google robot, seen from the camera that its data set was recorded with: `side`.

    An episode has an environment of its own, as in SimplerEnv's evaluator: where a kept one's distractors lie depends
    on the episodes before. The arm takes base-frame metres and the angles of one turn.
    """

    packages = ("simpler_env", "mani_skill2_real2sim", "sapien")
    resets_memory = True
    views = ("side",)

    def __init__(self, config: SimplerSimConfig) -> None:
        self.config: SimplerSimConfig = config
        self._suite = SUITES[config.robot]
        self.contract = self._suite.contract
        self._tasks = choose_tasks(self._suite.tasks, config, f"SimplerEnv's {config.robot}")
        self._settings = self._chosen_settings()
        check_installed()
        self._env: Any = None

    @property
    def renderer(self) -> str:
        """SAPIEN's; before cabinets it traces rays."""
        return "sapien"

    def tasks(self) -> list[Task]:
        """List the tasks of `config.tasks` in that order, or all of the robot."""
        return self._tasks

    def episodes(self) -> list[Episode]:
        """List `config.episodes` of every task, protocol and variant, from number `config.seed`, or all that it has.

        Raises:
            UserError: one has fewer than `config.seed` says.
        """
        first, plan = self.config.seed, []
        for setting in self._settings.values():
            count = len(setting.starts)
            if first >= count:
                raise UserError(f"sim.seed={first}: {setting.task} has {count} episodes, numbered from 0.")
            numbers = range(first, min(first + self.config.episodes, count))
            plan += [self._episode(setting, number, setting.instruction(number)) for number in numbers]
        return plan

    def episode(self, task: Task, seed: int) -> Episode:
        """Return an episode of the first of a task's variants."""
        setting = next(setting for setting in self._settings.values() if setting.task == task.name)
        is_own = task == self._suite.tasks[task.name]
        return self._episode(setting, seed, setting.instruction(seed) if is_own else task.instruction)

    def reset(self, episode: Episode) -> Observation:
        """Build the episode's environment and start it.

        Raises:
            UserError: SimplerEnv tells something else here, cannot render, or its pictures are empty.
        """
        self.close()
        setting = self._settings[episode.scene, episode.group, episode.variant]
        start = setting.starts[episode.seed]
        self._env = build(self._suite, setting.scene, start, episode.max_steps)
        seen, _ = self._env.reset(options=start.options)
        self._said = self._env.unwrapped.get_language_instruction()
        if self._said != setting.instruction(episode.seed):
            raise UserError(
                f"sim=simpler: SimplerEnv says '{self._said}' in {episode}: it is another version than the one whose "
                "episodes are listed here (docs/sim_simpler.md)."
            )
        self._instruction = episode.goals[0].instruction
        self._gripper = start_gripper(self.config.robot, self.config.wrapper)
        self._reached = False
        observation = self._observe(seen)
        if empty_views(observation):
            raise UserError("sim=simpler renders pictures of one colour: SAPIEN's Vulkan driver does not work here.")
        return observation

    def step(self, action: Float32[np.ndarray, "a"]) -> Step:
        """Apply one action. `info` is the environment's; its `episode_stats` say e.g. whether something was grasped."""
        check_action(action, self.contract, "simpler")
        motion = self._motion(action)
        seen, _, succeeds, is_last, info = self._current.step(motion)
        self._follow_instruction()
        self._advance(info)
        counts = is_last or self.config.success is SuccessRule.early_stop
        self._reached = self._reached or bool(succeeds and counts)
        return Step(self._observe(seen), int(self._reached), bool(is_last), info)

    def close(self) -> None:
        """Free the environment."""
        if self._env is not None:
            self._env.close()
            self._env = None

    @property
    def _current(self) -> Any:
        if self._env is None:
            raise RuntimeError("call reset before step")
        return self._env

    def _chosen_settings(self) -> dict[tuple[str, str, str], Setting]:
        """Return what is played, task by task, by what an episode says of it.

        Raises:
            UserError: a task is not part of any of the protocols.
        """
        chosen: dict[tuple[str, str, str], Setting] = {}
        for task in self._tasks:
            found = [
                setting
                for setting in self._suite.settings
                if setting.task == task.name and setting.protocol in self.config.protocols
            ]
            if not found:
                raise UserError(
                    f"sim.protocols={[str(protocol) for protocol in self.config.protocols]} do not have {task.name}: "
                    "leave it out of sim.tasks, or add a protocol."
                )
            chosen |= {(setting.task, setting.group, setting.scene.variant): setting for setting in found}
        return chosen

    def _episode(self, setting: Setting, number: int, told: str) -> Episode:
        return Episode(
            scene=setting.task,
            seed=number,
            goals=(Goal(task=setting.task, instruction=told),),
            max_steps=self.config.max_steps or setting.max_steps,
            group=setting.group,
            variant=setting.scene.variant,
        )

    def _motion(self, action: Float32[np.ndarray, "7"]) -> Float64[np.ndarray, "7"]:
        """Return what the environment takes: metres, a rotation vector, and the gripper."""
        turn = Rotation.from_euler("xyz", action[3:6]).as_rotvec()
        return np.array([*action[:3], *turn, self._gripper.command(float(action[6]))], dtype=np.float64)

    def _follow_instruction(self) -> None:
        """Tell what the environment tells next, if it does: once the drawer should be open, what to place there.

        An episode that is played without instructions stays so; no other wording of what comes later is known.
        """
        said = self._current.unwrapped.get_language_instruction()
        if said != self._said:
            self._said = said
            self._instruction = said if self._instruction else ""
            self._gripper = start_gripper(self.config.robot, self.config.wrapper)

    def _advance(self, info: dict[str, Any]) -> None:
        """Have RoboVLMs' way: an open drawer brings the next instruction, with the step after this one."""
        env = self._current.unwrapped
        opened = info.get("episode_stats", {}).get("is_drawer_open", False)
        if self.config.wrapper is Wrapper.robovlms and opened and not env.is_final_subtask():
            env.advance_to_next_subtask()

    def _observe(self, seen: Any) -> Observation:
        frame: UInt8[np.ndarray, "_h _x c"] = np.ascontiguousarray(seen["image"][self._suite.camera]["rgb"])
        return Observation(frames={"side": frame}, instruction=self._instruction)
