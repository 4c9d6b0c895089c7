"""Folders in the shapes that robots' published recordings have, and those of the benchmarks that we do not read."""

from __future__ import annotations

import json

import numpy as np
import pytest
from composing import completed, composed
from own_folders import OSC, STEPS, paths_of, values, write_aloha, write_lerobot, write_robomimic, written
from rlds_folder import SPECS, episode, make_rlds_folder, png

from robovlms.cli.option_files import store
from robovlms.data.opening import native_reader
from robovlms.errors import UserError
from robovlms.inspection.discovery.finding import find_data
from robovlms.inspection.discovery.folder import without_depth

h5py = pytest.importorskip("h5py")
ARM = {"type": "OSC_POSE", "output_max": OSC["output_max"], "input_type": "delta", "input_ref_frame": "base"}
DRIVING = {"type": "BASIC", "body_parts": {"arms": {"right": ARM}, "base": {"type": "JOINT_VELOCITY"}}}


def write_robocasa(path):
    """Twelve entries, the base behind the arm, and an instruction for each demonstration."""
    write_robomimic(path, controller=DRIVING, width=12, robots="PandaOmron")
    with h5py.File(path, "a") as file:
        for number, thing in enumerate(["apple", "mug", "can"]):
            file[f"data/demo_{number}"].attrs["ep_meta"] = json.dumps({"lang": f"pick the {thing}", "layout_id": 3})
    return path


def test_robocasas_demonstrations_have_an_instruction_each_and_a_base_behind_the_gripper(tmp_path):
    file = written(write_robocasa(tmp_path / "demo.hdf5"))
    assert file.questions == {}
    contract = values(file).contract
    assert list(contract.names) == [
        *("dx", "dy", "dz", "drx", "dry", "drz", "gripper"), *(f"base_{i}" for i in range(1, 6)),
    ]  # fmt: skip
    assert (contract.frame, contract.position_unit, contract.gripper_closed) == ("base", 0.05, 1)
    config = completed(composed(f"data={file.name}", "view=all", "data.validation_fraction=0")).data
    reader = native_reader(config, "train", ["side"])
    assert [episode.instruction for episode in reader.episodes] == ["pick the apple", "pick the mug", "pick the can"]


def test_an_instruction_of_the_command_line_goes_before_that_of_a_demonstration(tmp_path):
    file = written(write_robocasa(tmp_path / "demo.hdf5"))
    told = ["data.validation_fraction=0", "data.instruction='tidy up'"]
    reader = native_reader(completed(composed(f"data={file.name}", "view=all", *told)).data, "train", ["side"])
    assert {episode.instruction for episode in reader.episodes} == {"tidy up"}


@pytest.mark.parametrize("above", [0, 1, 3])
def test_robotwins_raw_files_are_named_with_what_converts_them_from_any_folder_above(tmp_path, above):
    data = tmp_path / "robotwin/beat_block_hammer/demo_clean/data"
    data.mkdir(parents=True)
    (data.parent / "instructions").mkdir()
    with h5py.File(data / "episode0.hdf5", "w") as file:
        file["joint_action/vector"] = paths_of(14)
        file["observation/head_camera/rgb"] = np.array([b"jpeg"] * STEPS)
    with pytest.raises(UserError, match=r"demo_clean/data holds RoboTwin's raw HDF5 files .*process_data\.sh"):
        find_data([data, *data.parents][above])


def test_what_is_read_is_taken_before_what_is_not(tmp_path):
    write_lerobot(tmp_path / "all/good", [f"left_arm_{i}" for i in range(3)], paths_of(3))
    (tmp_path / "all/videos.zarr").mkdir()
    assert values(written(tmp_path / "all")).root == str(tmp_path / "all/good")


def test_columns_of_what_holds_belong_to_the_action_and_a_choice_among_columns_is_a_guess(tmp_path):
    extra = {
        "actions.effector.position": (paths_of(2), None), "actions.joint.position": (paths_of(14), None),
        "actions.head.position": (paths_of(2), None),
    }  # fmt: skip
    found = find_data(write_lerobot(tmp_path / "x", None, paths_of(2), extra=extra, key="nothing"))
    data = values(store("data", "robot.yaml", found.text))
    assert data.action_key == "actions.joint.position+actions.effector.position"
    assert list(data.contract.names)[12:] == [f"joint_position_{i}" for i in (13, 14)] + [
        f"effector_position_{i}" for i in (1, 2)
    ]
    assert "put together from 2 of 3 columns; the others are actions.head.position" in found.said.split("guessed:")[1]


def lerobot_with_depth(root):
    cameras = ["observation.images.head", "observation.depth.front"]
    write_lerobot(root, ["left_arm_1"], paths_of(1), cameras=cameras)
    return "observation.depth.front"


def aloha_with_depth(root):
    write_aloha(root, cameras=["cam_high", "cam_high_depth"])
    return "observations/images/cam_high_depth"


def robosuite_with_depth(root):
    root.mkdir()
    write_robomimic(root / "demo.hdf5")
    with h5py.File(root / "demo.hdf5", "a") as file:
        for demo in file["data"].values():
            demo["obs/agentview_depth"] = np.zeros((len(demo["actions"]), 16, 16, 3), np.uint8)
    return "obs/agentview_depth"


def rlds_with_depth(root):
    depth = {"image": {"shape": {"dimensions": ["4", "6", "3"]}, "dtype": "uint8", "encodingFormat": "png"}}
    grey = {"image": {"shape": {"dimensions": ["4", "6", "1"]}, "dtype": "uint8", "encodingFormat": "png"}}
    observation = SPECS["observation"] | {"hand_depth": depth, "mask": grey}
    steps = episode(0, 4) | {
        "steps/observation/hand_depth": [png(0)] * 4, "steps/observation/mask": [png(0, mode="L")] * 4,
    }  # fmt: skip
    specs = SPECS | {"observation": observation}
    make_rlds_folder(root, {"train": [[steps] * 3]}, specs, name="my_robot")
    return "observation/hand_depth"


@pytest.mark.parametrize(
    "write",
    [lerobot_with_depth, aloha_with_depth, robosuite_with_depth, rlds_with_depth],
    ids=lambda each: each.__name__,
)
def test_a_camera_that_is_depth_by_its_name_alone_is_left_out_and_named(tmp_path, write):
    depth = write(tmp_path / "x")
    found = find_data(tmp_path / "x")
    assert f"note: {depth} is depth by its name" in found.said
    assert not any("depth" in camera for camera in values(store("data", "robot.yaml", found.text)).views.values())


@pytest.mark.parametrize(
    ("camera", "is_depth"),
    [
        ("observation.images.Depth", True), ("front-depth", True), ("DEPTH_front", True), ("headDepth", True),
        ("depth0", True), ("depthmap", True), ("wrist_depth_image", True), ("image_with_depth", True),
        ("indepth", False), ("cam_depthless", False),
    ],
)  # fmt: skip
def test_depth_is_a_word_of_its_own_however_it_is_written(camera, is_depth):
    seen, notes = without_depth([camera, "side"])
    assert seen == (["side"] if is_depth else [camera, "side"])
    assert len(notes) == is_depth


def test_a_file_whose_only_pictures_are_depth_is_refused_with_their_names(tmp_path):
    robosuite_with_depth(tmp_path / "x")
    with h5py.File(tmp_path / "x" / "demo.hdf5", "a") as file:
        for demo in file["data"].values():
            for name in [name for name, each in demo["obs"].items() if each.ndim == 4 and "depth" not in name]:
                del demo["obs"][name]
    with pytest.raises(UserError, match=r"no camera that can be read.*obs/agentview_depth is depth by its name"):
        find_data(tmp_path / "x")


def test_a_picture_of_one_channel_is_left_out_and_named(tmp_path):
    rlds_with_depth(tmp_path / "x")
    assert "note: observation/mask has one channel" in find_data(tmp_path / "x").said
