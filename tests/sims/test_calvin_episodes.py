"""sim=calvin in CALVIN's own environment; needs its checkouts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from robovlms.errors import UserError
from robovlms.sims.base import Goal
from robovlms.sims.calvin.chains import load_chains
from robovlms.sims.calvin.experts import PLANS
from robovlms.sims.calvin.schema import CalvinSimConfig
from robovlms.sims.calvin.simulator import Calvin, executable


def made(**options) -> Calvin:
    try:
        return Calvin(CalvinSimConfig(name="calvin", **{"episodes": 1, **options}))
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def sim():
    simulator = made(tasks=[*PLANS])
    yield simulator
    simulator.close()


def task_of(simulator, name):
    return next(task for task in simulator.tasks() if task.name == name)


def act_until(simulator, act, goals_done, limit=60):
    """Act until so many goals are reached; return the last step."""
    for _ in range(limit):
        step = simulator.step(act())
        if step.goals_done == goals_done:
            return step
    raise AssertionError(f"{step.goals_done} goals after {limit} steps")


def solve(simulator, name, seed):
    """Let the expert of a task play it; return the last step."""
    task = task_of(simulator, name)
    simulator.reset(simulator.episode(task, seed))
    return act_until(simulator, lambda: simulator.expert(task), goals_done=1)


def test_an_action_reaches_calvin_within_its_range_and_with_a_gripper_of_minus_or_plus_one() -> None:
    action = np.array([1.5, -2, 0.3, 0, 0, 0, 0.2], np.float32)
    np.testing.assert_allclose(executable(action), [1, -1, 0.3, 0, 0, 0, 1])
    assert executable(np.array([0, 0, 0, 0, 0, 0, -0.1], np.float32))[-1] == -1
    assert action[0] == 1.5


def test_the_benchmark_is_the_thousand_chains_of_five_goals_with_360_steps_each() -> None:
    simulator = made(episodes=1000)
    plan = simulator.episodes()
    assert [episode.seed for episode in plan] == list(range(1000))
    assert [tuple(goal.task for goal in episode.goals) for episode in plan] == [chain.tasks for chain in load_chains()]
    assert {episode.max_steps for episode in plan} == {360}
    assert plan[0].goals[4].instruction == "use the switch to turn off the light bulb"
    assert simulator.resets_memory


def test_with_tasks_an_episode_is_one_of_them_from_numbered_official_starts(sim) -> None:
    few = made(tasks=["open_drawer", "turn_on_led"], episodes=2, seed=1)
    assert [(e.scene, e.seed, len(e.goals)) for e in few.episodes()] == [
        ("open_drawer", 1, 1), ("open_drawer", 2, 1), ("turn_on_led", 1, 1), ("turn_on_led", 2, 1),
    ]  # fmt: skip


def test_a_task_that_no_official_state_allows_is_refused() -> None:
    with pytest.raises(UserError, match=r"sim\.tasks has stack_block, which no official initial state allows"):
        made(tasks=["open_drawer", "stack_block"])


def test_an_unknown_scene_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"sim\.scene=calvin_scene_E is not in .*Did you mean 'calvin_scene_"):
        made(scene="calvin_scene_E")


def test_views_have_calvin_s_sizes_and_proprio_is_robot_obs(sim) -> None:
    observation = sim.reset(sim.episode(task_of(sim, "open_drawer"), 0))
    assert {view: frame.shape for view, frame in observation.frames.items()} == {
        "side": (200, 200, 3), "wrist": (84, 84, 3),
    }  # fmt: skip
    np.testing.assert_allclose(observation.proprio[:3], [0.0259, -0.2313, 0.5713], atol=1e-3)
    assert observation.proprio[-1] == 1


@pytest.mark.parametrize("name", PLANS)
def test_an_expert_solves_its_task_from_an_official_start_and_the_episode_ends_there(sim, name) -> None:
    assert solve(sim, name, seed=3).done


def test_a_chain_goes_on_in_the_scene_that_the_last_goal_left_with_the_next_instruction(sim) -> None:
    """The light goes on, then off: who judged from the episode's start would see nothing happen."""
    on, off = task_of(sim, "turn_on_led"), task_of(sim, "turn_off_led")
    goals = tuple(Goal(task=task.name, instruction=task.instruction) for task in (on, off))
    sim.reset(replace(sim.episode(on, 0), goals=goals))
    step = act_until(sim, lambda: sim.expert(on), goals_done=1)
    assert not step.done
    assert step.observation.instruction == off.instruction
    for _ in range(6):  # let go of the button
        assert sim.step(np.array([0, 0, 1, 0, 0, 0, -1], np.float32)).goals_done == 1
    assert act_until(sim, lambda: sim.expert(off), goals_done=2).done


def test_other_scenes_are_played_and_have_no_experts() -> None:
    simulator = made(tasks=["turn_on_led"], scene="calvin_scene_A")
    (task,) = simulator.tasks()
    seen = simulator.reset(simulator.episode(task, 0))
    assert seen.frames["side"].std() > 15
    with pytest.raises(NotImplementedError, match="calvin_table_D"):
        simulator.expert(task)
    simulator.close()


def test_what_was_played_before_leaves_no_trace(sim) -> None:
    """CALVIN's own reset leaves contacts, the gripper's command and the button as they were."""

    def start() -> list[np.ndarray]:
        seen = [sim.reset(sim.episode(task_of(sim, "close_drawer"), 5))]
        seen += [sim.step(np.array([0.5, 0, -1, 0, 0, 0.5, 1], np.float32)).observation for _ in range(4)]
        return [array for each in seen for array in (*each.frames.values(), each.proprio)]

    first = start()
    solve(sim, "turn_on_led", seed=0)
    for own, other in zip(first, start(), strict=True):
        np.testing.assert_array_equal(own, other)


def test_a_renderer_that_draws_nothing_is_refused(sim) -> None:
    episode = sim.episode(task_of(sim, "open_drawer"), 0)
    sim.reset(episode)
    black = SimpleNamespace(name="static", render=lambda: (np.zeros((200, 200, 3), np.uint8), None))
    cameras = sim._world._env.cameras
    sim._world._env.cameras = [black, *cameras[1:]]
    with pytest.raises(UserError, match=r"sim\.renderer=tiny \(pybullet, TinyRenderer\) gives empty pictures: side"):
        sim.reset(episode)
    sim._world._env.cameras = cameras
