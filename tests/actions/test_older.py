"""What configs of older checkpoints implied about grippers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_conversion import data
from test_parts import PLANAR, SEVEN, mixture, plan, source

from robovlms.actions.older import imply_gripper
from robovlms.actions.statistics import Statistics
from robovlms.config.choices import Rotation
from robovlms.config.data import AugmentationConfig


def test_data_with_a_gripper_are_as_they_were():
    config = source(SEVEN)
    assert imply_gripper(config) is config


@pytest.mark.parametrize("names", [["gripper", "dx", "dy"], ["dx", "dy"], ["dx", "gripper", "dy"]])
def test_a_mixture_had_its_gripper_last_whatever_its_names_said(names):
    found = plan(imply_gripper(mixture({"planar": PLANAR}, names)))
    assert (found.action_names, found.binary, found.sources[0].action_dims) == (["dx", "dy", "gripper"], [2], [0, 1])


def test_data_without_a_gripper_are_one_source_that_lacks_the_policys_last_entry():
    config = replace(
        data({"rotation": Rotation.quaternion}, names=["dx", "dy", "dz", "droll", "dpitch", "dyaw"]),
        views={"side": "image"},
        augmentation=AugmentationConfig(brightness=0.5),
        num_workers=1,
        proprio_seen=["z"],
    )
    implied = imply_gripper(config)
    assert (implied.augmentation.brightness, implied.num_workers) == (0.5, 1)
    found = plan(implied)
    assert found.action_names == ["dx", "dy", "dz", "dqx", "dqy", "dqz", "dqw", "gripper"]
    assert (found.find(None).action_dims, found.find(None).proprio_names) == (list(range(7)), ["z"])
    assert found.find(None).contract.names == found.action_names[:-1]


def test_statistics_of_an_added_gripper_are_left_out():
    whole = Statistics(
        **{key: [1.0, 2.0, 0.0] for key in ("mean", "std", "min", "max", "q01", "q10", "q50", "q90", "q99")}, num_rows=3
    )
    assert whole.scatter([2, 0], 4).mean == [2.0, 0.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="zip"):
        whole.scatter([0], 4)
