"""sim=calvin in CALVIN's own environment; needs its checkouts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from composing import completed, composed

from robovlms.actions.plan import DataPlan
from robovlms.data.opening import native_reader
from robovlms.data.windows import WindowDataset
from robovlms.errors import UserError
from robovlms.inspection.replay.simulation import replay_in
from robovlms.sims.base import Goal
from robovlms.sims.calvin.chains import load_chains
from robovlms.sims.calvin.experts import PLANS
from robovlms.sims.calvin.schema import CalvinSimConfig
from robovlms.sims.calvin.simulator import Calvin, executable
from robovlms.types import SimulatorState


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


def record(simulator, name, folder) -> None:
    """Write what the expert of a task does as a segment of CALVIN's."""
    task, training = task_of(simulator, name), folder / "training"
    (training / "lang_annotations").mkdir(parents=True)
    observation = simulator.reset(simulator.episode(task, 3))
    done, frame = 0, 0
    while True:
        action = simulator.expert(task) if not done else np.zeros(7)
        arrays = {"rgb_static": observation.frames["side"], "rgb_gripper": observation.frames["wrist"]}
        state = {key: simulator._seen[key] for key in ("robot_obs", "scene_obs")}
        np.savez(training / f"episode_{frame:07d}.npz", rel_actions=action.astype(np.float64), **arrays, **state)
        if done:
            break
        observation, done, _, _ = simulator.step(action)
        frame += 1
    language = {"ann": ["do it"], "task": [name]}
    np.save(training / "lang_annotations/auto_lang_ann.npy", {"language": language, "info": {"indx": [(0, frame)]}})


def test_a_recorded_segment_is_solved_again_from_its_first_frame_and_not_with_an_axis_inverted(sim, tmp_path) -> None:
    record(sim, "open_drawer", tmp_path)
    names = "[x,y,z,roll,pitch,yaw,opening,q1,q2,q3,q4,q5,q6,q7,gripper]"
    proprio = ["data.proprio_key=robot_obs", f"data.proprio_names={names}", "data.proprio_rotation=euler"]
    bounds = ["data.normalization.low=-1", "data.normalization.high=1"]
    data = completed(composed("data=calvin", f"data.root={tmp_path}", *bounds, *proprio)).data
    dataset = WindowDataset(
        native_reader(data, "train", ["side"]), DataPlan.of(data, ["side"]).sources[0], window_size=1, chunk_size=1
    )
    report, findings = replay_in(sim, dataset)
    assert [(task.task, task.recorded, task.solved) for task in report.tasks] == [("open_drawer", 1, 1)]
    assert findings == []
    assert max(entry.drift for entry in report.states if entry.name in "xyz") < 1e-4  # m
    for path in (tmp_path / "training").glob("*.npz"):
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **arrays | {"rel_actions": arrays["rel_actions"] * [1, -1, 1, 1, 1, 1, 1]})
    report, findings = replay_in(sim, dataset)
    assert report.tasks[0].solved == 0
    assert any("open_drawer 0 of 1" in finding.what for finding in findings)


def test_a_state_that_is_not_calvins_is_refused(sim) -> None:
    episode = sim.episode(task_of(sim, "open_drawer"), 0)
    with pytest.raises(UserError, match="has 3 numbers, and those of CALVIN have 39"):
        sim.restore(episode, SimulatorState(values=np.zeros(3)))
