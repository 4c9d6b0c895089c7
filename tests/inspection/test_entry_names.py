"""Recorded names become those of a contract: arms in front, grippers and poses by their words."""

from __future__ import annotations

import pytest

from robovlms.config.choices import Rotation
from robovlms.inspection.discovery.names import entry_names


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (["left_arm_0", "right_arm_0"], ["left/arm_0", "right/arm_0"]),
        (["shoulder_pan.pos", "gripper.pos"], ["shoulder_pan", "gripper"]),
        (["main_shoulder_pan", "main_gripper"], ["main_shoulder_pan", "gripper"]),
        (["left_waist", "left_gripper", "right_gripper"], ["left/waist", "left/gripper", "right/gripper"]),
        (["kLeftShoulderPitch", "kRightHandThumb0"], ["left/shoulder_pitch", "right/hand_thumb0"]),
        (
            ["l_joint1", "l_gripper", "r_joint1", "r_gripper"],
            ["left/joint1", "left/gripper", "right/joint1", "right/gripper"],
        ),
        (["wrist_roll", "wrist_pitch"], ["wrist_roll", "wrist_pitch"]),
        (["eef_x", "eef_y", "eef_z", "eef_yaw"], ["x", "y", "z", "yaw"]),
        (["delta_x", "delta_y", "delta_z", "gripper_close"], ["x", "y", "z", "gripper"]),
        (["x", "y", "z", "rot_x", "rot_y", "rot_z"], ["x", "y", "z", "rx", "ry", "rz"]),
        (["roll", "pitch"], ["roll", "pitch"]),
        (["x.vel", "theta.vel"], ["x_vel", "theta_vel"]),
        (["left_x", "left_y", "left_z", "right_x"], ["left/x", "left/y", "left/z", "right/x"]),
        (["a", "a", "a"], ["a", "a_2", "a_3"]),
        (["gripper_1", "gripper_2"], ["gripper_1", "gripper_2"]),
        (["left.pos", "right.pos"], ["left", "right"]),
        (["left/j1", "robot0/x"], ["left/j1", "robot0/x"]),
        (["0", "1"], ["j1", "j2"]),
        (["关节 1", "arm: #2"], ["关节_1", "arm_2"]),
        (["", "?"], ["entry", "entry_2"]),
    ],
)
def test_a_recorded_name_becomes_a_contracts(recorded, expected):
    names = entry_names(recorded, len(recorded)).names
    assert names == expected
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("turn", "rotation"),
    [
        (["roll", "pitch", "yaw"], Rotation.euler),
        (["rx", "ry", "rz"], Rotation.axis_angle),
        (["ee.wx", "ee.wy", "ee.wz"], Rotation.axis_angle),
        (["quat_x", "quat_y", "quat_z", "quat_w"], Rotation.quaternion),
        (["rot6d_0", "rot6d_1", "rot6d_2", "rot6d_3", "rot6d_4", "rot6d_5"], Rotation.rotation_6d),
    ],
)
def test_a_turn_is_recognised_by_its_entries(turn, rotation):
    names = entry_names(["ee.x", "ee.y", "ee.z", *turn], 3 + len(turn))
    assert (names.is_pose, names.rotation) == (True, rotation)


@pytest.mark.parametrize(("recorded", "width"), [(None, 3), (["actions"], 3)])
def test_entries_without_names_are_numbered(recorded, width):
    names = entry_names(recorded, width)
    assert names.names == ["j1", "j2", "j3"]
    assert not names.is_named
