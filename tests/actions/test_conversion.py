from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import transform

from robovlms.actions.contract import converted_contract
from robovlms.actions.conversion import ActionConverter, read_rotation, write_rotation
from robovlms.config.choices import NormalizationMode, ReferenceFrame, Representation, Rotation
from robovlms.config.data import ActionContract, ConvertConfig, DataConfig, NormalizationConfig

POSE = ["x", "y", "z", "roll", "pitch", "yaw"]
WRITTEN = [kind for kind in Rotation if kind not in (Rotation.none, Rotation.euler_increment)]


def make(config: DataConfig) -> ActionConverter:
    return ActionConverter(config, converted_contract(config))


def data(convert: dict | None = None, **contract) -> DataConfig:
    """Deltas in the world, euler angles, 10 Hz, with the pose as proprioception."""
    base = ActionContract(
        names=["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"],
        representation=Representation.delta,
        frame=ReferenceFrame.world,
        rotation=Rotation.euler,
        position_unit=1.0,
        control_hz=10.0,
    )
    return DataConfig(
        name="made up",
        root="",
        views={},
        normalization=NormalizationConfig(mode=NormalizationMode.identity),
        contract=replace(base, **contract),
        convert=ConvertConfig(**(convert or {})),
        proprio_key="state",
        proprio_names=POSE,
        proprio_rotation=Rotation.euler,
    )


def episode(length: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Poses of a hand that wanders, and where it is told to go."""
    generator = np.random.default_rng(0)
    steps = generator.normal(0, 0.05, (length + 1, 6))
    poses = np.array([0.4, 0, 0.3, 3.0, 0, 0.5]) + np.cumsum(steps, axis=0)
    return poses[:-1], poses[1:]


def convert(config: DataConfig, actions: np.ndarray, poses: np.ndarray) -> np.ndarray:
    converter = make(config)
    steps = np.arange(converter.num_steps(len(actions)))
    rows = converter.covered(steps)
    return converter(actions[rows].astype(np.float32), poses[rows].astype(np.float32), steps)


def absolute(targets: np.ndarray) -> tuple[DataConfig, np.ndarray]:
    config = data(representation=Representation.absolute, names=[*POSE, "gripper"])
    return config, np.concatenate([targets, np.ones((len(targets), 1))], axis=1)


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_rotation_survives_being_written_and_read(kind):
    rotations = transform.Rotation.random(50, rng=np.random.default_rng(0))
    again = read_rotation(write_rotation(rotations, kind), kind)
    assert (again * rotations.inv()).magnitude().max() < 1e-6


def test_six_numbers_are_the_first_two_columns_of_the_matrix():
    quarter = transform.Rotation.from_rotvec([[0, 0, np.pi / 2]])
    np.testing.assert_allclose(write_rotation(quarter, Rotation.rotation_6d)[0], [0, 1, 0, -1, 0, 0], atol=1e-9)


def test_a_quaternion_ends_with_a_positive_w_whatever_its_sign_was():
    rotation = read_rotation(np.array([[0.0, 0.0, -0.6, -0.8]]), Rotation.quaternion)
    np.testing.assert_allclose(write_rotation(rotation, Rotation.quaternion)[0], [0, 0, 0.6, 0.8])


@pytest.mark.parametrize("rotation", [*WRITTEN, Rotation.euler_increment])
@pytest.mark.parametrize("frame", [ReferenceFrame.world, ReferenceFrame.tcp])
def test_absolute_targets_survive_the_way_through_any_kind_of_delta(frame, rotation):
    poses, targets = episode()
    config, actions = absolute(targets)
    asked = {"representation": Representation.delta, "frame": frame, "rotation": rotation}
    there = replace(config, convert=ConvertConfig(**asked))
    deltas = convert(there, actions, poses)
    back = replace(
        config,
        contract=converted_contract(there),
        convert=ConvertConfig(
            representation=Representation.absolute, frame=ReferenceFrame.world, rotation=Rotation.euler
        ),
    )
    again = convert(back, deltas, poses)
    np.testing.assert_allclose(again[:, :3], targets[:, :3], atol=1e-5)
    turned = [transform.Rotation.from_euler("xyz", each[:, 3:6]) for each in (again, targets)]
    assert (turned[0] * turned[1].inv()).magnitude().max() < 1e-5


@pytest.mark.parametrize("unit", ["position_unit", "rotation_unit"])
def test_what_has_no_known_unit_is_taught_as_recorded_and_never_converted(unit):
    actions = np.array([[0.5, 0, 0, 0, 0, -0.5, 1]])
    np.testing.assert_allclose(convert(data(**{unit: None}), actions, np.zeros((1, 6))), actions)
    with pytest.raises(ValueError, match=rf"data.contract.{unit}=null: set it"):
        make(data({"rotation": Rotation.axis_angle}, **{unit: None}))


def test_a_delta_ahead_of_a_hand_that_looks_left_is_one_to_the_left_in_the_world():
    poses = np.array([[0, 0, 0, 0, 0, np.pi / 2]])
    action = np.array([[0.1, 0, 0, 0, 0, 0, 1]])
    config = data({"frame": ReferenceFrame.world}, frame=ReferenceFrame.tcp)
    np.testing.assert_allclose(convert(config, action, poses)[0], [0, 0.1, 0, 0, 0, 0, 1], atol=1e-6)


def test_calvins_increments_of_euler_angles_are_what_is_added_to_the_pose():
    poses, targets = episode(1)
    increments = np.concatenate([(targets - poses) / np.repeat([0.02, 0.05], 3), [[1.0]]], axis=1)
    config = data(
        {
            "representation": Representation.absolute,
            "rotation": Rotation.euler,
            "position_unit": 1.0,
            "rotation_unit": 1.0,
        },
        rotation=Rotation.euler_increment,
        position_unit=0.02,
        rotation_unit=0.05,
    )
    np.testing.assert_allclose(convert(config, increments, poses)[:, :3], targets[:, :3], atol=1e-6)
    np.testing.assert_allclose(
        transform.Rotation.from_euler("xyz", convert(config, increments, poses)[:, 3:6]).as_matrix(),
        transform.Rotation.from_euler("xyz", targets[:, 3:6]).as_matrix(),
        atol=1e-6,
    )


def test_at_a_third_of_the_rate_deltas_add_up_and_the_last_gripper_counts():
    actions = np.zeros((7, 7))
    actions[:, 0] = [1, 2, 3, 4, 5, 6, 7]
    actions[:, 5] = 0.1
    actions[:, 6] = [1, 1, -1, 1, 1, 1, 1]
    converted = convert(data({"control_hz": 10 / 3}), actions, np.zeros((7, 6)))
    np.testing.assert_allclose(converted[:, 0], [6, 15])  # the seventh begins a step that is not whole
    np.testing.assert_allclose(converted[:, 5], [0.3, 0.3], atol=1e-6)
    np.testing.assert_allclose(converted[:, 6], [-1, 1])


def test_deltas_in_the_hands_frame_turn_with_it_when_they_are_put_together():
    quarter = np.array([[1, 0, 0, 0, 0, np.pi / 2, 1]] * 4)  # ahead and left, four times: a square
    converted = convert(data({"control_hz": 2.5}, frame=ReferenceFrame.tcp), quarter, np.zeros((4, 6)))
    np.testing.assert_allclose(converted[0, :3], [0, 0, 0], atol=1e-6)


def test_units_are_changed_and_grippers_speak_minus_one_and_one():
    config = data({"position_unit": 0.02}, gripper_closed=1.0, gripper_open=0.0)
    action = np.array([[0.01, 0, 0, 0, 0, 0, 0.0], [0, 0, 0, 0, 0, 0, 1.0]])
    converted = convert(config, action, np.zeros((2, 6)))
    np.testing.assert_allclose(converted[:, 0], [0.5, 0])
    np.testing.assert_allclose(converted[:, 6], [1, -1])


def test_a_new_rotation_renames_its_entries():
    contract = converted_contract(data({"rotation": Rotation.rotation_6d}))
    assert contract.names == ["dx", "dy", "dz", "dr1", "dr2", "dr3", "dr4", "dr5", "dr6", "gripper"]


def test_data_without_a_gripper_gets_none():
    names = ["dx", "dy", "dz", "droll", "dpitch", "dyaw"]
    assert converted_contract(data(names=names)).names == names


@pytest.mark.parametrize(
    ("asked", "contract", "message"),
    [
        ({"control_hz": 20.0}, {}, "exceeds the recorded 10"),
        ({"rotation": Rotation.euler}, {"rotation": Rotation.none}, "neither made up nor dropped"),
        ({"frame": ReferenceFrame.base}, {}, "not told apart"),
        ({"frame": ReferenceFrame.joint}, {}, "not possible from frame=world"),
        ({"representation": Representation.absolute, "frame": ReferenceFrame.tcp}, {}, "moves with the hand"),
        ({}, {"rotation": Rotation.quaternion}, "needs the entries qx, qy, qz, qw"),
        ({}, {"gripper_open": -1.0}, "are equal"),
    ],
)
def test_what_cannot_be_converted_names_the_option(asked, contract, message):
    with pytest.raises(ValueError, match=message):
        make(data(asked, **contract))


def test_a_conversion_that_needs_the_pose_asks_for_it():
    config = replace(data({"frame": ReferenceFrame.tcp}), proprio_key=None, proprio_names=[])
    with pytest.raises(ValueError, match=r"needs the hand's pose: set data\.proprio_key"):
        make(config)
