import re
from contextlib import nullcontext

import numpy as np
import pytest

pytest.importorskip("metaworld", reason='pip install -e ".[metaworld]"')

import torch
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.statistics import Statistics
from robovlms.config.choices import NormalizationMode
from robovlms.config.closed_loop import CollectConfig
from robovlms.config.data import NormalizationConfig
from robovlms.sims import metaworld
from robovlms.sims.demos import Lesson, record_demo
from robovlms.sims.metaworld import MARKED_GOALS, SOFT_GRIP_EFFORT, MetaWorld
from robovlms.sims.metaworld_tasks import OPPOSITES, WORDS
from robovlms.sims.schemas.metaworld import MetaWorldSimConfig

TASKS = ["drawer-close", "faucet-open"]
HZ = 80.0  # one simulation step an action
RIGHT, STAY = np.array([1, 0, 0, 0, 0, 0, 1], np.float32), np.array([0, 0, 0, 0, 0, 0, 1], np.float32)


def config(**options) -> MetaWorldSimConfig:
    return MetaWorldSimConfig(name="metaworld", episodes=1, **options)


def start(sim, seed=0, task=0):
    """Begin an episode; return its first observation."""
    return sim.reset(sim.episode(sim.tasks()[task], seed))


@pytest.fixture(scope="module")
def sim():
    simulator = MetaWorld(config(tasks=TASKS, image_size=48, control_hz=HZ, max_steps=200))
    yield simulator
    simulator.close()


def play(sim, seed, num_steps=200):
    """Let the expert close the drawer; give the observations and whether it was ever closed."""
    seen, solved = [start(sim, seed)], False
    for _ in range(num_steps):
        step = sim.step(sim.expert(sim.tasks()[0]))
        seen.append(step.observation)
        solved = step.goals_done == 1
        if solved:
            break
    return seen, solved


def same(one, other):
    frames = all(np.array_equal(one.frames[view], other.frames[view]) for view in one.frames)
    return frames and np.array_equal(one.proprio, other.proprio)


def test_every_task_of_mt50_has_its_own_instruction():
    assert {f"{name}-v3" for name in WORDS} == set(ALL_V3_ENVIRONMENTS)
    assert MARKED_GOALS | set(SOFT_GRIP_EFFORT) <= set(WORDS)


def test_every_task_has_an_instruction_and_two_paraphrases_that_no_other_task_shares():
    told = [words for task in WORDS.values() for words in task]
    assert {len(task) for task in WORDS.values()} == {3}
    assert len(set(told)) == len(told) == 150


@pytest.mark.parametrize("name", OPPOSITES)
def test_opposite_tasks_share_a_scene(name):
    def scene(task):
        return ALL_V3_ENVIRONMENTS[f"{task}-v3"].model_name.fget(None)

    assert OPPOSITES[OPPOSITES[name]] == name
    assert scene(name) == scene(OPPOSITES[name])


def test_an_empty_task_list_means_all_fifty():
    assert len(MetaWorld(config(image_size=48, control_hz=HZ, max_steps=200)).tasks()) == 50


def test_an_unknown_task_is_refused_with_the_nearest_spelling():
    with pytest.raises(ValueError, match=r"sim.tasks has 'draw-open'.*Did you mean 'drawer-open'"):
        MetaWorld(config(tasks=["draw-open"], image_size=48, control_hz=HZ, max_steps=200))


def test_an_episode_longer_than_the_benchmarks_horizon_is_refused():
    with pytest.raises(ValueError, match=r"sim.max_steps=501 must be 1 to 500"):
        config(image_size=48, control_hz=HZ, max_steps=501).check("sim")


def test_both_views_show_the_scene_the_right_way_up(sim):
    frames = start(sim).frames
    assert list(frames) == ["side", "wrist"]
    for frame in frames.values():
        assert frame.shape == (48, 48, 3)
        assert frame.dtype == np.uint8
        assert 40 < frame.mean() < 215
        assert frame.std() > 15
    sky, table = frames["side"][:5, -5:].reshape(-1, 3), frames["side"][-5:, -5:].reshape(-1, 3)
    assert np.ptp(sky.mean(axis=0)) < 10  # grey
    assert table[:, 0].mean() > table[:, 2].mean() + 10  # wood


@pytest.mark.parametrize("name", ["drawer-close", "window-open", "pick-place"])
def test_what_a_camera_cannot_see_is_not_drawn_and_leaves_no_trace(name, monkeypatch):
    simulator = MetaWorld(config(tasks=[name], image_size=48, control_hz=20, max_steps=20))

    def play_on(steps):
        yield start(simulator).frames
        for _ in range(steps):
            yield simulator.step(simulator.expert(simulator.tasks()[0])).observation.frames

    with monkeypatch.context() as patched:
        patched.setattr(metaworld, "out_of_sight_left_out", lambda *_: nullcontext())
        everything = list(play_on(12))
        all_geoms = simulator._current._renderer.scene.ngeom
    for whole, drawn in zip(everything, play_on(12), strict=True):
        for view, picture in whole.items():
            np.testing.assert_array_equal(picture, drawn[view])
    assert simulator._current._renderer.scene.ngeom < all_geoms - 10  # of the wrist, which is drawn last
    simulator.close()


def test_the_seed_alone_decides_where_an_episode_starts(sim):
    first, other = start(sim, 1), start(sim, 2)
    sim.step(RIGHT)
    start(sim, 3, task=1)
    assert same(first, start(sim, 1))
    assert not np.array_equal(first.frames["side"], other.frames["side"])


def test_a_whole_episode_repeats_bit_for_bit_and_the_expert_solves_it(sim):
    first, solved = play(sim, seed=5)
    play(sim, seed=6, num_steps=3)
    second, _ = play(sim, seed=5)
    assert solved
    assert len(first) == len(second)
    assert all(same(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.slow
def test_recorded_actions_solve_the_task_again_through_the_policys_words_and_back(sim):
    task, seed = sim.tasks()[0], 7
    made = CollectConfig(max_start_steps=0, noise=0.0)
    demo = record_demo(sim, Lesson(task, task), seed, made)
    assert demo is not None
    normal = NormalizationConfig(mode=NormalizationMode.min_max)
    words = ActionNormalizer(normal, Statistics.compute(demo.actions), sim.contract.names, sim.contract.binary)
    again = words.denormalize(words.normalize(torch.from_numpy(demo.actions))).numpy()
    assert np.abs(again - demo.actions).max() < 1e-5
    inverted = again * np.where(np.arange(again.shape[1]) == 1, -1, 1).astype(np.float32)

    def solves(actions: np.ndarray) -> bool:
        sim.reset(sim.episode(task, seed))
        return any(sim.step(action).goals_done for action in actions)

    assert solves(again)
    assert not solves(inverted)


def test_the_expert_speaks_the_action_contract(sim):
    start(sim)
    action = sim.expert(sim.tasks()[0])
    assert action.shape == (len(sim.contract.names),)
    assert np.abs(action).max() <= 1
    assert np.array_equal(action[3:6], np.zeros(3))
    assert action[6] in (-1, 1)


def test_an_action_entry_of_one_moves_the_hand_by_a_centimetre_a_step_at_80_hz(sim):
    before = start(sim).proprio
    for _ in range(10):
        after = sim.step(RIGHT).observation.proprio
    for _ in range(10):  # the hand catches up with its target
        after = sim.step(STAY).observation.proprio
    assert after[:3] - before[:3] == pytest.approx([0.1, 0, 0], abs=0.01)
    assert sim.contract.control_hz == pytest.approx(1 / sim._current._env.dt)


def test_at_20_hz_an_action_is_held_for_four_simulation_steps(sim):
    slow = MetaWorld(config(tasks=TASKS, image_size=48, control_hz=20.0, max_steps=125))
    start(slow)
    start(sim)
    for _ in range(3):
        held = slow.step(RIGHT).observation
        for _ in range(4):
            stepped = sim.step(RIGHT).observation
        assert np.array_equal(held.proprio, stepped.proprio)
    assert slow.contract.control_hz == 20
    slow.close()


@pytest.mark.parametrize("hz", [30.0, 160.0])
def test_a_control_rate_that_does_not_divide_the_simulations_is_refused(hz):
    with pytest.raises(ValueError, match=rf"sim.control_hz={hz:g} must divide 80"):
        config(image_size=48, control_hz=hz, max_steps=10).check("sim")


def test_the_horizon_counts_actions_of_the_chosen_rate():
    with pytest.raises(ValueError, match=r"sim.max_steps=126 must be 1 to 125.*4 for every action"):
        config(image_size=48, control_hz=20.0, max_steps=126).check("sim")


def test_gripper_minus_one_closes_and_plus_one_opens(sim):
    start(sim)
    openings = []
    for sign in (-1, 1):
        for _ in range(15):
            step = sim.step(sign * STAY)
        openings.append(step.observation.proprio[3])
    assert openings[0] < 0.6
    assert openings[1] > 0.9


def test_the_hand_ignores_rotation(sim):
    turned = RIGHT + np.array([0, 0, 0, 1, 1, 1, 0], np.float32)
    start(sim)
    straight = sim.step(RIGHT).observation
    start(sim)
    assert same(straight, sim.step(turned).observation)


def test_an_action_of_another_length_is_refused(sim):
    start(sim)
    with pytest.raises(ValueError, match=re.escape("takes 7 action entries")):
        sim.step(np.zeros(4, np.float32))


def test_an_episode_may_take_as_long_as_the_config_says_or_meta_worlds_own_horizon():
    for asked, allowed in [(3, 3), (None, 125)]:
        sim = MetaWorld(config(tasks=TASKS, image_size=16, control_hz=20.0, max_steps=asked))
        assert {episode.max_steps for episode in sim.episodes()} == {allowed}
