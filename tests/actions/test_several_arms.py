"""Contracts of any hands: grippers anywhere, open or closed or an opening width, and arms in front of entries."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_conversion import data, episode, make
from test_parts import contract, mixture, plan, source

from robovlms.actions.checks import Severity, numeric_findings
from robovlms.actions.contract import (
    arms,
    check_contract,
    check_layout,
    converted_contract,
    gripper_entries,
    position_entries,
    rotation_entries,
)
from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.statistics import Statistics
from robovlms.config.choices import NormalizationMode, Representation, Rotation
from robovlms.config.data import NormalizationConfig
from robovlms.errors import UserError

MOVES = ["dx", "dy", "dz", "droll", "dpitch", "dyaw"]
TWO_ARMS = [f"{arm}/{name}" for arm in ("left", "right") for name in ("gripper", *MOVES)]
POSES = ["x", "y", "z", "roll", "pitch", "yaw"]
JOINTS = ["left/gripper", "left/j1", "right/j1", "right/gripper"]


def test_grippers_and_arms_are_told_by_their_names():
    assert gripper_entries(["gripper", "dx", "left/gripper", "dgripper", "gripper_left", "a/b/gripper"]) == [0, 2, 5]
    assert arms(TWO_ARMS) == ["left/", "right/"]
    assert arms(["dx", "gripper"]) == [""]
    assert position_entries(TWO_ARMS) == []
    assert position_entries(TWO_ARMS, "right/") == [8, 9, 10]
    assert rotation_entries(TWO_ARMS, Rotation.euler, "left/") == [4, 5, 6]


def test_a_policys_entries_are_the_datas_in_their_order():
    assert converted_contract(source(JOINTS, rotation=Rotation.none)).names == JOINTS
    assert plan(source(["dx", "dy"], rotation=Rotation.none)).action_names == ["dx", "dy"]
    two = plan(source(JOINTS, rotation=Rotation.none, continuous_grippers=["right/gripper"]))
    assert (two.action_names, two.binary) == (JOINTS, [0])


def test_every_arm_is_converted_as_it_is_alone():
    poses, wanted = episode()
    generator = np.random.default_rng(1)
    other_poses, other_wanted = poses + 0.1, wanted + generator.normal(0, 0.02, wanted.shape)
    grippers = generator.uniform(0, 0.08, (len(poses), 2))
    shared = {"representation": Representation.absolute, "gripper_closed": 0.0, "gripper_open": 0.08}
    convert = {"representation": Representation.delta, "rotation": Rotation.rotation_6d, "control_hz": 5.0}
    names = [f"{arm}/{name}" for arm in ("left", "right") for name in ("gripper", *POSES)]
    both = replace(
        data(convert, names=names, continuous_grippers=["left/gripper"], **shared),
        proprio_names=[name for name in names if not name.endswith("gripper")],
    )
    actions = np.concatenate([grippers[:, :1], wanted, grippers[:, 1:], other_wanted], axis=1).astype(np.float32)
    converter = make(both)
    steps = np.arange(converter.num_steps(len(actions)))
    rows = converter.covered(steps)
    seen = np.concatenate([poses, other_poses], axis=1).astype(np.float32)
    found = converter(actions[rows], seen[rows], steps)
    assert converter.target.names[:4] == ["left/gripper", "left/dx", "left/dy", "left/dz"]
    for first, pose, columns in ((0, poses, slice(0, 7)), (10, other_poses, slice(7, 14))):
        one = make(data(convert, names=["gripper", *POSES], **shared))
        alone = one(actions[rows, columns], pose.astype(np.float32)[rows], steps)
        np.testing.assert_array_equal(found[:, first : first + 10], alone)
    np.testing.assert_allclose(found[:, 0], 2 * grippers[rows[1::2], 0] / 0.08 - 1, atol=1e-5)


def test_opening_widths_are_normalised_like_the_arm_and_come_back_and_binary_grippers_are_decided():
    rows = np.array([[-1.2, 0.1, 0.0, -1], [0.4, 0.3, 2.0, 1]], np.float32)
    stats = Statistics.compute(rows)
    modes = {"left/gripper": NormalizationMode.identity}
    for config in ({}, {"modes": modes}, {"mu": 255.0}):
        chosen = NormalizationConfig(mode=NormalizationMode.min_max, **config)
        normalizer = ActionNormalizer(chosen, stats, JOINTS, [3])
        normalized = normalizer.normalize(torch.from_numpy(rows))
        assert normalized[:, 0].tolist() == pytest.approx([-1.2, 0.4] if "modes" in config else [-1, 1])
        assert normalizer.normalize(torch.tensor([[0.0, 0.2, 1.0, 0.2]]))[0, 3] == 1
        torch.testing.assert_close(normalizer.denormalize(normalized), torch.from_numpy(rows))
    wrong = NormalizationConfig(mode=NormalizationMode.min_max, modes={"right/gripper": NormalizationMode.identity})
    with pytest.raises(UserError, match=r"modes has \['right/gripper'\], not among the scaled left/gripper, left/j1"):
        ActionNormalizer(wrong, stats, JOINTS, [3])


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (["dx", "dx"], {}, r"names=\['dx', 'dx'\] must name each entry once"),
        (["gripper"], {}, r"has no entry but grippers .* set data.contract.continuous_grippers=\['gripper'\]"),
        (
            ["dx", "gripper"],
            {"continuous_grippers": ["left/gripper"]},
            r"continuous_grippers has \['left/gripper'\], not among the grippers \['gripper'\]",
        ),
        (["dx", "finger"], {"continuous_grippers": ["finger"]}, r"a gripper is called gripper, or .* left/gripper"),
        (
            ["left/droll", "left/dpitch", "left/dyaw", "right/droll", "right/dyaw", "right/dpitch"],
            {"rotation": Rotation.euler},
            r"rotation=euler needs the entries roll, pitch, yaw in this order .* an arm in front of each, left/roll",
        ),
        (["left/droll", "left/dpitch", "left/dyaw", "right/droll"], {"rotation": Rotation.euler}, "needs the entries"),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused(names, changes, message):
    with pytest.raises(UserError, match=message):
        check_layout(contract(names, **{"rotation": Rotation.none, **changes}))


def test_an_arm_without_a_turn_stands_beside_one_that_turns():
    check_layout(contract(["left/dx", "left/dy", "left/dz", *(f"right/{name}" for name in MOVES)]))


def test_both_sides_must_mean_the_same_grippers_in_any_order_of_naming():
    ours = contract(JOINTS, rotation=Rotation.none, continuous_grippers=["left/gripper", "right/gripper"])
    check_contract(ours, replace(ours, continuous_grippers=["right/gripper", "left/gripper"]), "the robot")
    told = r"(?s)continuous_grippers: policy .*, the robot \['left/gripper'\].*continuous_grippers=\[left/gripper\]"
    with pytest.raises(UserError, match=told):
        check_contract(ours, replace(ours, continuous_grippers=["left/gripper"]), "the robot")


def test_a_conversion_of_poses_names_the_arm_whose_pose_is_not_seen():
    names = [f"{arm}/{name}" for arm in ("left", "right") for name in MOVES]
    config = data({"representation": Representation.absolute}, names=names)
    with pytest.raises(UserError, match="name its entries left/x, left/y, left/z"):
        make(config)
    left = replace(config, proprio_names=[f"left/{name}" for name in POSES])
    with pytest.raises(UserError, match="name its entries right/x, right/y, right/z"):
        make(left)
    with pytest.raises(UserError, match=r"is about poses, and data.contract.names=\['j1', 'j2'\] has none"):
        make(data({"representation": Representation.absolute}, names=["j1", "j2"], rotation=Rotation.none))


def two_sources(first: list[str], second: list[str], whole: list[str], agree: bool):
    names = ["left/dx", "left/gripper"]
    one, two = (source(names, rotation=Rotation.none, continuous_grippers=each) for each in (first, second))
    meaning = contract(names, rotation=Rotation.none, continuous_grippers=whole)
    return mixture({"one": one, "two": two}, contract=meaning, agree=agree)


@pytest.mark.parametrize("agree", [True, False])
def test_a_gripper_that_is_a_width_to_some_sources_alone_is_refused(agree):
    wide = ["left/gripper"]
    assert plan(two_sources(wide, wide, wide, agree)).binary == []
    assert plan(two_sources([], [], [], agree)).binary == [1]
    for config, width, decision in (
        (two_sources(wide, [], wide, agree), "data.sources.one.", "data.sources.two."),
        (two_sources([], wide, [], agree), "data.sources.two.", "data.sources.one."),
        (two_sources(wide, wide, [], agree), "data.sources.one.", "data."),
    ):
        told = f"an opening width by {width}contract.continuous_grippers, and open or closed by {decision}contract."
        with pytest.raises(UserError, match=re.escape(told)) as caught:
            plan(config)
        assert "e.g. width/left/gripper" in str(caught.value)


def test_sources_of_one_arm_and_of_two_share_what_they_name_alike():
    one, two = source(["left/dx", "left/gripper"], rotation=Rotation.none), source(JOINTS, rotation=Rotation.none)
    names = ["right/gripper", "left/gripper", "left/dx", "left/j1", "right/j1"]
    found = plan(mixture({"one": one, "two": two}, contract=contract(names, rotation=Rotation.none)))
    assert (found.binary, [each.action_dims for each in found.sources]) == ([0, 1], [[2, 1], [1, 3, 4, 0]])


def test_numbers_are_held_against_what_every_arm_and_gripper_declares():
    meaning = contract(["left/dx", "left/dy", "left/dz", "left/gripper", "right/gripper"], rotation=Rotation.none)
    meaning = replace(meaning, continuous_grippers=["right/gripper"], gripper_closed=0.0, gripper_open=0.08)
    rows = np.random.default_rng(0).uniform(0.001, 0.08, (50, 5))
    assert numeric_findings(rows, meaning, meaning.names) == []
    rows[:, 0], rows[:, 3], rows[:, 4] = 3.0, rows[:, 3] * 12, rows[:, 4] * 12
    rows[0, 0] = 2.0
    found = {finding.what.split(" ")[0]: finding.severity for finding in numeric_findings(rows, meaning, meaning.names)}
    assert found == {
        "data.contract.position_unit=1": Severity.error,
        "left/gripper": Severity.error,
        "right/gripper": Severity.warning,
    }
