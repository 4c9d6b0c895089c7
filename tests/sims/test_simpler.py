"""SimplerEnv's episodes, actions and judgement, against its interface as it was recorded (`recorded_simpler.py`)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import recorded_simpler
from composing import completed, composed, plan_of

from robovlms.actions.contract import check_contract
from robovlms.config.choices import Language
from robovlms.errors import UserError
from robovlms.evaluation.rollout import rollout
from robovlms.sims.simpler import google_robot, widowx
from robovlms.sims.simpler.gripper import start_gripper
from robovlms.sims.simpler.schema import Protocol, Robot, SimplerSimConfig, SuccessRule, Wrapper
from robovlms.sims.simpler.simulator import Simpler

OPEN, CLOSED = 1.0, -1.0
STAY = np.array([0, 0, 0, 0, 0, 0, OPEN], np.float32)
APPLE = "google_robot_place_apple_in_closed_top_drawer"
# Of all episodes that scripts/octo_bridge.sh and rt1_*.sh play, expanded by SimplerEnv's own argparse.
SCRIPTS_SHA256 = "eeb5639c91aa0c497112ff29ec954e014401add31a4e63a62461a3f89e2a879b"


@pytest.fixture
def recording(monkeypatch):
    return recorded_simpler.install(monkeypatch)


def config(robot=Robot.widowx, **options) -> SimplerSimConfig:
    options = {"protocols": [Protocol.visual_matching], "episodes": 60, "seed": 0, **options}
    return SimplerSimConfig(name="simpler", robot=robot, **options)


def google(*tasks, **options) -> SimplerSimConfig:
    return config(Robot.google_robot, tasks=list(tasks), **options)


def first(simulator):
    """Begin the first episode."""
    return simulator.reset(simulator.episodes()[0])


def play(simulator, steps, action=STAY):
    """Begin the first episode; return the steps, its last observation's instruction with each."""
    first(simulator)
    return [simulator.step(action) for _ in range(steps)]


def rounded(values) -> list[float]:
    return [round(float(value), 6) for value in values]


def described(suite, setting, start) -> str:
    """Write down what decides an episode, as the digest of the scripts has it."""
    options = start.options
    robot, objects = options["robot_init_options"], options["obj_init_options"]
    values = {
        "env": setting.scene.env,
        "scene": setting.scene.stage,
        "robot": setting.scene.robot,
        "control": round(suite.contract.control_hz),
        "sim": suite.sim_hz,
        "max": setting.max_steps,
        "overlay": start.photograph or "",
        "build": dict(setting.scene.build),
        "xy": rounded(robot["init_xy"]),
        "q": [round(float(value), 5) + 0.0 for value in robot["init_rot_quat"]],
        "obj": objects if "episode_id" in objects else {"init_xy": rounded(objects["init_xy"])},
    }
    return json.dumps(values, sort_keys=True)


def test_all_episodes_of_the_scripts_are_played_and_no_others():
    played = [
        described(suite, setting, start)
        for suite in (widowx.SUITE, google_robot.SUITE)
        for setting in suite.settings
        for start in setting.starts
    ]
    assert len(played) == 2952
    assert hashlib.sha256("\n".join(sorted(played)).encode()).hexdigest() == SCRIPTS_SHA256


def test_groups_are_the_columns_of_the_published_tables(recording):
    for robot, protocols, wanted in [
        (Robot.widowx, [Protocol.visual_matching], {"visual matching": 4 * 24}),
        (
            Robot.google_robot,
            [Protocol.visual_matching],
            {
                "pick coke can, visual matching": 4 * 3 * 25,
                "move near, visual matching": 4 * 60,
                "open or close drawer, visual matching": 4 * 6 * 9,
                "place apple in drawer, visual matching": 4 * 27,
            },
        ),
        (
            Robot.google_robot,
            [Protocol.variant_aggregation],
            {
                "pick coke can, variant aggregation": 9 * 3 * 25,
                "move near, variant aggregation": 8 * 60,
                "open or close drawer, variant aggregation": 7 * 6 * 9,
                "place apple in drawer, variant aggregation": 7 * 27,
            },
        ),
    ]:
        episodes = Simpler(config(robot, protocols=protocols)).episodes()
        assert Counter(episode.group for episode in episodes) == wanted
        assert len(set(episodes)) == len(episodes)


def test_every_instruction_is_the_one_that_the_environment_was_recorded_with():
    for suite in (widowx.SUITE, google_robot.SUITE):
        for setting in suite.settings:
            recorded = recorded_simpler.RECORDED[setting.scene.env]["instructions"]
            told = [setting.instruction(number) for number in range(len(setting.starts))]
            assert told == (recorded if len(recorded) > 1 else recorded * len(told))


def test_an_episode_is_built_and_started_as_the_scripts_do(recording):
    episode = Simpler(google("google_robot_open_middle_drawer")).episodes()[1]
    simulator = Simpler(google("google_robot_open_middle_drawer"))
    simulator.reset(episode)
    ((env, built),) = recording.of("build")
    assert env == "OpenMiddleDrawerCustomInScene-v0"
    assert built == {
        "obs_mode": "rgbd",
        "robot": "google_robot_static",
        "sim_freq": 513,
        "control_mode": "arm_pd_ee_delta_pose_align_interpolate_by_planner_"
        "gripper_pd_joint_target_delta_pos_interpolate_by_planner",
        "control_freq": 3,
        "max_episode_steps": 113,
        "scene_name": "dummy_drawer",
        "camera_cfgs": {"add_segmentation": True},
        "rgb_overlay_path": "/assets/real_inpainting/open_drawer_a1.png",
        "shader_dir": "rt",
        "station_name": "mk_station_recolor",
        "light_mode": "simple",
        "disable_bad_material": True,
        "urdf_version": None,
    }
    ((options,),) = recording.of("reset")
    assert rounded(options["robot_init_options"]["init_xy"]) == [0.765, -0.182]
    assert rounded(options["robot_init_options"]["init_rot_quat"]) == [0.01, 0, 0, 0.99995]  # half a turn - 0.02
    assert rounded(options["obj_init_options"]["init_xy"]) == [0, 0]


def test_every_episode_has_an_environment_of_its_own_and_the_last_one_is_freed(recording):
    simulator = Simpler(config())
    for episode in simulator.episodes()[:3]:
        simulator.reset(episode)
    assert [call[0] for call in recording.calls if call[0] in ("build", "close")] == ["build", "close"] * 2 + ["build"]
    simulator.close()
    assert recording.calls[-1] == ("close",)


def test_the_environment_gets_metres_and_a_rotation_vector(recording):
    simulator = Simpler(config())
    quarter = np.pi / 2
    for angles, vector in [
        ((0.1, 0, 0), (0.1, 0, 0)),
        ((0, 0, quarter), (0, 0, quarter)),
        # a quarter of a turn about x, then about the fixed z: a third of a turn about (1, 1, 1)
        ((quarter, 0, quarter), (2 * np.pi / 3 / np.sqrt(3),) * 3),
    ]:
        play(simulator, 1, np.array([0.01, -0.02, 0.03, *angles, CLOSED], np.float32))
        (sent,) = recording.of("step")[-1]
        np.testing.assert_allclose(sent, [0.01, -0.02, 0.03, *vector, CLOSED], atol=1e-6)


@pytest.mark.parametrize(
    ("robot", "wrapper", "wanted", "sent"),
    [
        (Robot.widowx, Wrapper.simpler_env, "oocco", "oocco"),
        (Robot.widowx, Wrapper.robovlms, "oocco", "coccc"),  # opens at the second request
        (Robot.google_robot, Wrapper.simpler_env, "oo" + "c" * 20, "--" + "c" * 15 + "-----"),
        (Robot.google_robot, Wrapper.simpler_env, "oco" + "o" * 17, "-" + "c" * 15 + "----"),  # a change is missed
        (Robot.google_robot, Wrapper.robovlms, "occcooo", "-cc-oo-"),
        (Robot.google_robot, Wrapper.robovlms, "ccc", "---"),
    ],
)
def test_a_gripper_moves_as_the_wrapper_has_it(robot, wrapper, wanted, sent):
    gripper = start_gripper(robot, wrapper)
    opens = 1 if robot is Robot.widowx else -1  # the Google robot's +1 closes
    commands = {opens: "o", -opens: "c", 0: "-"}
    got = [commands[round(gripper.command(OPEN if letter == "o" else CLOSED))] for letter in wanted]
    assert "".join(got) == sent


@pytest.mark.parametrize(
    ("rule", "succeeds", "goals_done"),
    [
        (SuccessRule.truncation, {2}, [0, 0, 0, 0]),
        (SuccessRule.truncation, {2, 4}, [0, 0, 0, 1]),
        (SuccessRule.early_stop, {2}, [0, 1, 1, 1]),
    ],
)
def test_success_is_judged_at_the_last_step_or_at_any(recording, rule, succeeds, goals_done):
    recording.script["succeeds"] = succeeds
    steps = play(Simpler(config(success=rule, max_steps=4)), 4)
    assert [step.goals_done for step in steps] == goals_done
    assert [step.done for step in steps] == [False, False, False, True]


def test_what_the_environment_says_of_an_episode_is_kept(recording):
    (step,) = play(Simpler(config()), 1)
    assert step.info["episode_stats"]["is_src_obj_grasped"] is False


class Listener:
    """Keeps still, and what it was told before every reset of its memory."""

    def __init__(self) -> None:
        self.told: list[list[str]] = []

    def reset(self) -> None:
        self.told.append([])

    def step(self, observation):
        self.told[-1].append(observation.instruction)
        return STAY

    def close(self) -> None:
        pass


def listen(recording, wrapper, **changes) -> list[tuple[str, int]]:
    """Play the apple task; return what was told between two resets of the memory, and for how many steps."""
    simulator, listener = Simpler(google(APPLE, wrapper=wrapper)), Listener()
    result, _ = rollout(listener, simulator, replace(simulator.episodes()[0], **changes))
    assert (result.steps, result.reached) == (200, 0)
    assert all(len(set(told)) == 1 for told in listener.told)
    return [(told[0], len(told)) for told in listener.told]


def test_the_apple_is_asked_for_after_a_hundred_steps_with_a_fresh_memory(recording):
    recording.script["opens"] = 30
    wanted = [("open top drawer", 101), ("place apple into top drawer", 99)]
    assert listen(recording, Wrapper.simpler_env) == wanted
    assert recording.of("advance") == []


def test_robovlms_asks_for_the_apple_a_step_after_the_drawer_is_open(recording):
    recording.script["opens"] = 30
    wanted = [("open top drawer", 31), ("place apple into top drawer", 169)]
    assert listen(recording, Wrapper.robovlms) == wanted
    assert len(recording.of("advance")) == 1


def test_without_instructions_the_apple_is_not_mentioned_either(recording):
    episode = Simpler(google(APPLE)).episodes()[0]
    silent = {"goals": (replace(episode.goals[0], instruction=""),), "language": Language.empty}
    assert listen(recording, Wrapper.simpler_env, **silent) == [("", 200)]


def test_the_gripper_starts_anew_with_a_new_instruction(recording):
    simulator = Simpler(google(APPLE))
    first(simulator)
    closed = STAY * np.array([1, 1, 1, 1, 1, 1, -1], np.float32)
    for action in [STAY] * 95 + [closed] * 8:
        simulator.step(action)
    sent = [action[6] for (action,) in recording.of("step")]
    assert sent[95:] == [1, 1, 1, 1, 1, 1, 0, 0]  # the motion would last until step 110


@pytest.mark.parametrize(
    ("data", "robot", "source"),
    [
        ("bridge", Robot.widowx, None),
        ("fractal", Robot.google_robot, None),
        ("oxe", Robot.widowx, "bridge"),
        ("oxe", Robot.google_robot, "fractal"),
    ],
)
def test_policies_of_the_robots_own_data_fit(recording, data, robot, source):
    plan = plan_of(completed(composed(f"data={data}", "data.root=/nowhere", "view=side")))
    check_contract(plan.find(source).contract, Simpler(config(robot)).contract, "sim=simpler")


def test_a_policy_of_the_other_robots_data_is_refused(recording):
    plan = plan_of(completed(composed("data=fractal", "data.root=/nowhere", "view=side")))
    with pytest.raises(UserError, match=r"control_hz: policy 3\.0, sim=simpler 5\.0"):
        check_contract(plan.find(None).contract, Simpler(config()).contract, "sim=simpler")


@pytest.mark.parametrize("preset", ["simplerenv_perform", "simplerenv_perform_appendix", "simpler_training_recipe"])
def test_a_preset_of_the_paper_is_evaluated_as_the_paper_does(recording, preset):
    sim = completed(composed(f"experiment={preset}", "data.root=/nowhere")).sim
    assert (sim.robot, sim.protocols, sim.wrapper) == (Robot.widowx, [Protocol.visual_matching], Wrapper.robovlms)
    assert (sim.success, len(Simpler(sim).episodes())) == (SuccessRule.truncation, 96)


def test_without_simplerenv_what_to_clone_and_install_is_said_in_one_message():
    code = (
        "from robovlms.sims.simpler.schema import SimplerSimConfig;"
        "from robovlms.sims.simpler.simulator import Simpler;"
        "Simpler(SimplerSimConfig(name='simpler', episodes=1, robot='widowx', protocols=['visual_matching']))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert ran.returncode == 1
    assert "ImportError: sim=simpler: No module named 'simpler_env'" in ran.stderr
    assert "git clone --recurse-submodules https://github.com/simpler-env/SimplerEnv" in ran.stderr
    assert "pip install -e SimplerEnv/ManiSkill2_real2sim -e SimplerEnv" in ran.stderr


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (FileNotFoundError("/assets/custom/models/eggplant is not found."), "set MS2_REAL2SIM_ASSET_DIR"),
        (RuntimeError("Cannot find a suitable rendering device"), "vulkaninfo must list an NVIDIA GPU"),
    ],
)
def test_what_simplerenv_cannot_build_is_said_with_its_cause(recording, raised, said):
    recording.fails = raised
    with pytest.raises(UserError, match=said) as caught:
        first(Simpler(config()))
    assert str(raised) in str(caught.value)


def test_pictures_of_one_colour_are_refused(recording):
    recording.script["black"] = True
    with pytest.raises(UserError, match="pictures of one colour"):
        first(Simpler(config()))


def test_another_version_of_simplerenv_is_noticed_by_what_it_says(recording, monkeypatch):
    monkeypatch.setitem(recorded_simpler.RECORDED["PutCarrotOnPlateInScene-v0"], "instructions", ["eat carrot"])
    with pytest.raises(UserError, match=r"says 'eat carrot' in widowx_carrot_on_plate.*another version"):
        first(Simpler(config(tasks=["widowx_carrot_on_plate"])))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: config(protocols=[Protocol.variant_aggregation]).check("sim"),
            "sim.robot=widowx has visual_matching;",
        ),
        (lambda: google(protocols=[]).check("sim"), r"sim\.protocols=\[\]: sim.robot=google_robot has"),
        (lambda: Simpler(google(APPLE, protocols=[Protocol.camera_orientations])), f"do not have {APPLE}"),
        (lambda: Simpler(config(seed=24)).episodes(), "sim.seed=24: widowx_spoon_on_towel has 24 episodes"),
    ],
)
def test_what_the_benchmark_does_not_have_is_refused(recording, make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_some_of_a_tasks_episodes_are_those_with_the_first_numbers(recording):
    episodes = Simpler(google("google_robot_move_near", episodes=2, seed=58)).episodes()
    assert [episode.seed for episode in episodes] == [58, 59] * 4
    assert episodes[1].goals[0].instruction == "move redbull can near pepsi can"
