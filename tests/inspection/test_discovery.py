"""`inspect_data.py data.root=<folder>` writes a data config that trains: what is found, guessed and asked."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from composing import composed
from lerobot_folder import write_v3
from miniatures import make_miniature
from own_folders import G1, OSC, opened, paths_of, values, write_aloha, write_lerobot, write_robomimic, written
from rlds_folder import episode, make_rlds_folder

from robovlms.cli.jobs import to_dataclass
from robovlms.cli.option_files import store
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.inspection.discovery.finding import find_data

pytest.importorskip("h5py")


def test_a_humanoid_with_two_hands_asks_nothing(tmp_path):
    root = write_lerobot(
        tmp_path / "g1", [G1], paths_of(26), robot="Unitree_G1", cameras=["observation.images.cam_left_high"]
    )
    file = written(root)
    data = values(file)
    assert file.questions == {}
    assert data.contract.names[:2] == ["left/shoulder_pitch", "left/shoulder_roll"]
    assert (data.contract.representation, data.contract.frame, data.contract.control_hz) == ("absolute", "joint", 10)
    assert data.views == {"side": "observation.images.cam_left_high"}
    assert data.proprio_key == "observation.state"
    assert list(data.proprio_names) == list(data.contract.names)
    assert opened(file).actions.shape[-1] == 26


def test_two_arms_with_grippers_of_any_width_ask_nothing(tmp_path):
    arm = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper"]
    names = {"motors": [f"{side}_{joint}" for side in ("left", "right") for joint in arm]}
    actions = paths_of(14)
    actions[:, [6, 13]] = np.linspace(1, 0, len(actions))[:, None]
    cameras = [f"observation.images.{name}" for name in ("cam_high", "cam_left_wrist", "cam_right_wrist")]
    file = written(write_lerobot(tmp_path / "aloha", names, actions, robot="aloha", cameras=cameras))
    data = values(file)
    assert file.questions == {}
    assert list(data.contract.continuous_grippers) == ["left/gripper", "right/gripper"]
    assert (data.contract.gripper_closed, data.contract.gripper_open) == (0, 1)
    assert list(data.views) == ["side", "cam_left_wrist", "cam_right_wrist"]
    assert (data["shift"]["side"], data["shift"]["cam_left_wrist"]) == (10, 4)
    assert opened(file).actions.shape[-1] == 14


def test_degrees_and_a_percentage_of_a_gripper_are_told_by_their_ranges(tmp_path):
    names = [
        f"{joint}.pos"
        for joint in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    ]
    actions = np.hstack([paths_of(5, size=60), np.linspace(97, 2, 24)[:, None]])
    found = find_data(write_lerobot(tmp_path / "so101", names, actions, robot="so101_follower"))
    data = values(store("data", "x.yaml", found.text))
    assert (data.contract.gripper_closed, data.contract.gripper_open) == (0, 100)
    assert "degrees" in found.text
    assert list(data.contract.names)[-1] == "gripper"
    assert data.contract.frame == "joint"


def test_a_gripper_whose_ends_nothing_tells_is_asked_about(tmp_path):
    actions = np.hstack([paths_of(3), np.linspace(0, 1, 24)[:, None]])
    file = written(write_lerobot(tmp_path / "x", ["left_arm_0", "left_arm_1", "left_arm_2", "left_gripper"], actions))
    assert set(file.questions) == {"contract.gripper_closed", "contract.gripper_open"}
    assert "closed: 0 or 1?" in file.questions["contract.gripper_closed"]
    answers = ["data.contract.gripper_closed=0", "data.contract.gripper_open=1"]
    assert opened(file, *answers).actions.shape[-1] == 4


def test_moves_of_a_hand_are_told_by_the_states_and_ask_nothing_more(tmp_path):
    generator = np.random.default_rng(0)
    moves = generator.uniform(-1, 1, (24, 6))
    poses = np.concatenate([np.zeros((1, 6)), np.cumsum(0.02 * moves, axis=0)[:-1]])
    actions = np.hstack([moves, np.where(np.arange(24) < 12, 1, 0)[:, None]])
    names = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    file = written(write_lerobot(tmp_path / "hand", names, actions, np.hstack([poses, actions[:, -1:]])))
    data = values(file)
    assert list(data.contract.names) == ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
    assert data.contract.representation == "delta"
    assert data.contract.rotation == "euler"
    assert data.contract.position_unit == pytest.approx(0.02)
    assert list(data.proprio_names)[:3] == ["x", "y", "z"]
    assert data.proprio_rotation == "euler"
    assert (
        "starts" in file.notes["contract.gripper_closed"].comment
        or "start" in file.notes["contract.gripper_closed"].comment
    )
    assert file.questions == {}


def test_entries_without_names_and_states_that_do_not_fit_are_asked_about(tmp_path):
    names, actions = ["actions"], np.random.default_rng(0).uniform(-0.5, 0.5, (24, 7))
    file = written(write_lerobot(tmp_path / "x", names, actions, np.zeros((24, 8)), cameras=["image", "wrist_image"]))
    assert "joint if the entries are joints" in file.questions["contract.frame"]
    assert list(values(file).contract.names) == [f"j{i}" for i in range(1, 8)]
    assert file.notes["contract.names"].comment.startswith("guess:")
    assert list(values(file).views) == ["side", "wrist"]
    assert opened(file, "data.contract.frame=joint").actions.shape[-1] == 7


def test_a_question_is_put_with_its_line_and_an_answer_in_the_file_or_on_the_command_line_settles_it(tmp_path):
    root = write_lerobot(tmp_path / "x", None, paths_of(2, size=900))
    file = written(root)
    with pytest.raises(
        UserError, match=r"data\.contract\.frame: not set.*\n.*robot\.yaml, line \d+: the largest value is"
    ):
        opened(file)
    answered = find_data(root).text.replace("frame: ???", "frame: image")
    assert store("data", "robot.yaml", answered).questions == {}
    assert (
        opened(store("data", "robot.yaml", answered)).actions.shape
        == opened(file, "data.contract.frame=image").actions.shape
    )


def test_columns_of_parts_are_put_together(tmp_path):
    extra = {
        "action.left_arm": (paths_of(3), None), "action.right_arm": (paths_of(3), None),
        "action.left_gripper": (np.linspace(0, 1, 24)[:, None], None),
    }  # fmt: skip
    file = written(write_lerobot(tmp_path / "x", None, paths_of(2), extra=extra, key="nothing"))
    data = values(file)
    assert data.action_key == "action.left_arm+action.right_arm+action.left_gripper"
    assert list(data.contract.names) == [f"{side}/arm_{i}" for side in ("left", "right") for i in (1, 2, 3)] + [
        "left/gripper"
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"x": 1, "gripper": 0}, ["gripper", "x"]),
        ({"left_arm": ["j1", "gripper"], "right_arm": ["j1"]}, ["left/arm_j1", "left/gripper", "right/arm_j1"]),
        ([["left_hand_1", "left_hand_2"], ["right_hand_1"]], ["left/hand_1", "left/hand_2", "right/hand_1"]),
        ({"a": 0, "b": 5}, ["j1", "j2"]),
    ],
)
def test_names_in_any_nesting_are_read(tmp_path, names, expected):
    root = write_lerobot(tmp_path / "x", names, paths_of(len(expected)))
    assert list(values(written(root)).contract.names) == expected


def test_a_part_of_a_data_set_names_the_whole(tmp_path):
    root = write_lerobot(tmp_path / "x", ["a"], paths_of(1))
    with pytest.raises(UserError, match=f"lies within a LeRobot data set: set data.root={root}\\."):
        find_data(root / "data/chunk-000")


def test_numbers_that_are_not_finite_are_left_to_the_reader_to_refuse(tmp_path):
    actions = paths_of(3)
    actions[3] = np.nan
    file = written(write_lerobot(tmp_path / "x", [f"left_arm_{i}" for i in range(3)], actions))
    assert set(file.questions) == {"contract.representation"}
    with pytest.raises(UserError, match="is not finite"):
        opened(file, "data.contract.representation=absolute")


def test_a_folder_without_instructions_asks_for_one(tmp_path):
    root = write_lerobot(tmp_path / "x", [f"left_arm_{i}" for i in range(3)], paths_of(3), tasks=[" "])
    file = written(root)
    assert set(file.questions) == {"instruction"}
    assert opened(file, "data.instruction='wave'").instruction == "wave"


def test_wrong_totals_of_a_v3_folder_are_no_obstacle(tmp_path):
    root = write_v3(tmp_path / "v3", lengths=[24, 24, 24])
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"total_episodes": 99, "total_frames": 7, "total_tasks": 4}))
    found = find_data(root)
    assert "3 episodes, 72 frames, 1 tasks" in found.said
    file = store("data", "x.yaml", found.text)
    assert set(file.questions) == {"contract.frame"}
    assert values(file).contract.representation == "delta"
    assert opened(file, "data.contract.frame=base", "data.contract.position_unit=1")


def test_a_camera_without_files_is_left_out_and_named(tmp_path):
    root = write_lerobot(tmp_path / "x", [f"left_arm_{i}" for i in range(3)], paths_of(3))
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["observation.images.gone"] = {"dtype": "video", "shape": [8, 8, 3], "names": None}
    info["features"]["observation.images.depth"] = {
        "dtype": "image",
        "shape": [8, 8, 3],
        "info": {"is_depth_map": True},
    }
    path.write_text(json.dumps(info))
    found = find_data(root)
    assert "observation.images.gone has no file in videos/: left out" in found.said
    assert "observation.images.depth records depth" in found.said
    assert list(values(store("data", "x.yaml", found.text)).views) == ["side"]


def test_robosuites_own_description_answers_all_but_the_instruction(tmp_path):
    file = written(write_robomimic(tmp_path / "image.hdf5"))
    data = values(file)
    assert set(file.questions) == {"instruction"}
    assert list(data.contract.names) == ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]
    assert (data.contract.position_unit, data.contract.rotation_unit, data.contract.control_hz) == (0.05, 0.5, 20)
    assert (data.contract.gripper_closed, data.contract.gripper_open, data.flip) == (1, -1, False)
    assert data.proprio_key == "obs/robot0_eef_pos+obs/robot0_eef_quat+obs/robot0_gripper_qpos"
    assert data.proprio_rotation == "quaternion"
    assert list(data.views) == ["side", "wrist"]
    window = opened(file, "data.instruction='lift the cube'")
    assert (window.instruction, window.actions.shape[-1]) == ("lift the cube", 7)


@pytest.mark.parametrize(
    ("controller", "width", "expected"),
    [
        ({"type": "BASIC", "body_parts": {"right": OSC | {"input_ref_frame": "base"}}}, 7,
         {"frame": "base", "position_unit": 0.05}),
        ({"type": "JOINT_POSITION", "control_delta": False}, 8, {"frame": "joint", "representation": "absolute"}),
        ({"type": "OSC_POSITION", "output_max": [0.1, 0.1, 0.1]}, 4, {"rotation": "none", "position_unit": 0.1}),
    ],
)  # fmt: skip
def test_robosuites_controllers_are_told_apart(tmp_path, controller, width, expected):
    contract = values(written(write_robomimic(tmp_path / "a.hdf5", controller=controller, width=width))).contract
    assert {key: contract[key] for key in expected} == expected
    assert len(contract.names) == width
    assert contract.names[-1] == "gripper"


def test_aloha_asks_what_was_done(tmp_path):
    file = written(write_aloha(tmp_path / "aloha", cameras=["cam_high", "cam_left_wrist"]))
    assert set(file.questions) == {"instruction"}
    data = values(file)
    assert (data.contract.control_hz, data.contract.frame) == (50, "joint")
    assert data.proprio_key == "observations/qpos"
    assert len(data.proprio_names) == 14
    assert opened(file, "data.instruction='insert the peg'").instruction == "insert the peg"


def test_one_arm_of_alohas_kind_is_asked_for_its_rate(tmp_path):
    file = written(write_aloha(tmp_path / "aloha", width=7))
    assert set(file.questions) >= {"instruction", "contract.control_hz"}


def test_a_file_of_states_alone_says_how_to_render_it(tmp_path):
    with pytest.raises(UserError, match=r"has no pictures.*dataset_states_to_obs\.py"):
        find_data(write_robomimic(tmp_path / "low_dim.hdf5", pictures=False))


def test_the_only_data_set_below_a_folder_is_taken_and_of_several_one_must_be_chosen(tmp_path):
    write_lerobot(tmp_path / "all/one/data", [f"left_arm_{i}" for i in range(3)], paths_of(3))
    assert values(written(tmp_path / "all")).root == str(tmp_path / "all/one/data")
    shutil.copytree(tmp_path / "all/one/data", tmp_path / "all/one/more")
    with pytest.raises(UserError, match=r"holds 2 data sets, set it to one of them: .*one/data .*one/more"):
        find_data(tmp_path / "all")
    shutil.move(tmp_path / "all/one/more", tmp_path / "all/other")  # one beside the folder of another is no choice
    with pytest.raises(UserError, match=r"holds 2 data sets, set it to one of them: .*one/data .*all/other"):
        find_data(tmp_path / "all")


def test_a_folder_of_no_known_format_says_what_was_looked_for_and_what_lies_there(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"Looked for: .*meta/info\.json.*\*\.hdf5 with /data.*There lies: notes\.txt"):
        find_data(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_data(tmp_path / "nowhere")


def test_what_is_not_read_is_named_with_what_to_do(tmp_path):
    root = write_lerobot(tmp_path / "lance", ["a"], paths_of(1))
    shutil.rmtree(root / "data")
    (root / "data/frames.lance").mkdir(parents=True)
    with pytest.raises(UserError, match="a LeRobot data set whose tables are Lance's, which is not read"):
        find_data(root)
    packed = tmp_path / "packed"
    packed.mkdir()
    for name in ("index.json", "actions.npy"):
        (packed / name).write_text("{}")
    with pytest.raises(UserError, match=r"a packed copy .*origin\.root"):
        find_data(packed)


def test_a_tfds_folder_that_no_preset_knows_asks_for_its_rate_and_axes(tmp_path):
    generator = np.random.default_rng(0)
    moves = np.hstack([generator.uniform(-0.02, 0.02, (24, 6)), (np.arange(24) < 12)[:, None]]).astype(np.float32)
    steps = episode(0, 24) | {"steps/action": moves, "steps/observation/state": np.zeros((24, 7), np.float32)}
    file = written(make_rlds_folder(tmp_path / "mine", {"train": [[steps] * 3]}, name="my_robot"))
    data = values(file)
    assert set(file.questions) == {"contract.control_hz", "contract.frame", "contract.position_unit"}
    assert list(data.contract.names) == ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
    assert file.notes["contract.names"].comment.startswith("guess:")
    assert (data.contract.gripper_closed, data.contract.gripper_open) == (0, 1)
    answers = ["data.contract.control_hz=5", "data.contract.frame=base", "data.contract.position_unit=1"]
    assert opened(file, *answers).actions.shape[-1] == 7


@pytest.mark.slow
def test_a_tfds_folder_that_a_preset_knows_is_that_preset(tmp_path):
    found = find_data(make_rlds_folder(tmp_path / "jaco_play", {"train": [[episode(0, 24)] * 3]}, name="jaco_play"))
    assert "all of whose facts are known: data=jaco_play" in found.said
    data = values(store("data", "x.yaml", found.text))
    assert data.contract.control_hz == composed("data=jaco_play").data.contract.control_hz
    assert data.root.endswith("jaco_play/1.0.0")


def test_calvin_is_found_from_the_root_and_from_a_split_of_it(tmp_path):
    make_miniature(
        to_dataclass(composed("data=calvin", "data.root=/x"), TrainConfig).data, tmp_path / "calvin", steps=3
    )
    for place in ("calvin", "calvin/training"):
        data = values(written(tmp_path / place))
        assert (data.name, data.root) == ("calvin", str(tmp_path / "calvin"))


def test_robosuites_own_recorder_is_read_too(tmp_path):
    import h5py

    path = write_robomimic(tmp_path / "demo.hdf5")
    with h5py.File(path, "a") as file:
        attributes = file["data"].attrs
        attributes["env_info"] = json.dumps(json.loads(attributes["env_args"])["env_kwargs"])
        del attributes["env_args"]
        for number in (2, 1, 0):  # it counts from 1
            file.move(f"data/demo_{number}", f"data/demo_{number + 1}")
    data = values(written(path))
    assert (data.contract.position_unit, data.contract.control_hz, data.name) == (0.05, 20, "libero")
