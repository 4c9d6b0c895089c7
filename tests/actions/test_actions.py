from dataclasses import replace

import numpy as np
import pytest
import torch

from robovlms.actions.contract import check_contract
from robovlms.actions.normalizer import ActionNormalizer, chunk_actions
from robovlms.actions.statistics import Statistics, load_statistics, save_statistics
from robovlms.config.choices import NormalizationMode, ReferenceFrame, Representation
from robovlms.config.data import ActionContract, NormalizationConfig

STATS = Statistics.compute(np.array([[-1.0, 0.0, -1.0], [3.0, 0.0, 1.0]], dtype=np.float32))

NAMES = ["x", "y", "gripper"]


def test_every_step_is_taught_its_own_action_first():
    actions = torch.arange(4.0).view(1, 4, 1)
    mask = torch.tensor([[True, True, True, False]])
    chunks, chunk_mask = chunk_actions(actions, mask, window_size=2, chunk_size=3)
    assert chunks[0, :, :, 0].tolist() == [[0, 1, 2], [1, 2, 3]]
    assert chunk_mask[0].tolist() == [[True, True, True], [True, True, False]]


def test_a_sequence_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="expected 4"):
        chunk_actions(torch.zeros(1, 5, 1), torch.ones(1, 5, dtype=torch.bool), 2, 3)


def test_calvin_actions_are_clipped_at_0_65_and_rescaled():
    normalizer = ActionNormalizer(
        NormalizationConfig(mode=NormalizationMode.bounds, low=-0.65, high=0.65), STATS, NAMES, [2]
    )
    raw = torch.tensor([[0.325, -1.0, 1.0], [0.65, 0.0, -1.0]])
    assert normalizer.normalize(raw).tolist() == [[0.5, -1.0, 1.0], [1.0, 0.0, -1.0]]


def test_actions_inside_the_bounds_survive_the_round_trip():
    for mode in NormalizationMode:
        normalizer = ActionNormalizer(NormalizationConfig(mode=mode), STATS, NAMES, [2])
        raw = torch.tensor([[0.5, 0.0, -1.0]])
        torch.testing.assert_close(normalizer.denormalize(normalizer.normalize(raw)), raw)


def test_an_entry_that_never_moves_becomes_zero_and_comes_back_as_its_constant():
    normalizer = ActionNormalizer(NormalizationConfig(mode=NormalizationMode.min_max), STATS, NAMES, [2])
    normalized = normalizer.normalize(torch.tensor([[1.0, 0.0, 1.0]]))
    assert normalized.tolist() == [[0.0, 0.0, 1.0]]
    assert normalizer.denormalize(torch.tensor([[0.0, 0.7, 1.0]]))[0, 1] == 0


UNEVEN = Statistics(
    mean=[1.0, 0.0], std=[0.5, 0.0], min=[-4.0, -1.0], max=[8.0, 1.0], q01=[-2.0, -1.0], q10=[-1.0, -1.0],
    q50=[0.0, 0.0], q90=[2.0, 1.0], q99=[3.0, 1.0], num_rows=10,
)  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "low", "high"),
    [
        (NormalizationMode.bounds, -0.65, 0.65),
        (NormalizationMode.min_max, -4, 8),
        (NormalizationMode.quantile, -2, 3),
        (NormalizationMode.mean_std, 0.5, 1.5),
        (NormalizationMode.identity, -1, 1),
    ],
)
def test_each_mode_maps_its_bounds_to_minus_and_plus_one(mode, low, high):
    normalizer = ActionNormalizer(NormalizationConfig(mode=mode, low=-0.65, high=0.65), UNEVEN, ["x", "gripper"], [1])
    raw = torch.tensor([[low, -1.0], [(low + high) / 2, 1.0], [high, 1.0]])
    normalized = normalizer.normalize(raw)
    torch.testing.assert_close(normalized[:, 0], torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(normalizer.denormalize(normalized), raw)


@pytest.mark.parametrize("mode", [NormalizationMode.quantile, NormalizationMode.mean_std, NormalizationMode.min_max])
def test_an_entry_that_moves_in_few_rows_is_normalised_by_its_extremes_and_comes_back(mode):
    rows = np.zeros((1_000_000, 2), np.float32)
    rows[500] = [-1e-4, 0.0]
    rows[700] = [3e-4, 0.0]
    stats = Statistics.compute(np.concatenate([rows, rows[:, :1]], axis=1))
    normalizer = ActionNormalizer(NormalizationConfig(mode=mode), stats, NAMES, [2])
    raw = torch.tensor([[-1e-4, 0.0, 1.0], [0.0, 0.0, 1.0], [3e-4, 0.0, -1.0]])
    normalized = normalizer.normalize(raw)
    torch.testing.assert_close(normalized[:, 0], torch.tensor([-1.0, -0.5, 1.0]))
    assert normalized[:, 1].tolist() == [0, 0, 0]
    torch.testing.assert_close(normalizer.denormalize(normalized), raw)


def test_statistics_survive_the_file(tmp_path):
    save_statistics(tmp_path / "stats.json", {"mine": STATS})
    assert load_statistics(tmp_path / "stats.json") == {"mine": STATS}
    assert STATS.mean == [1.0, 0.0, 0.0]
    assert STATS.num_rows == 2


def test_units_of_positions_do_not_separate_contracts_of_joints():
    joints = ActionContract(
        names=["j1", "j2", "gripper"],
        representation=Representation.absolute,
        frame=ReferenceFrame.joint,
        control_hz=10.0,
        position_unit=None,
    )
    check_contract(joints, replace(joints, position_unit=1.0), "the robot")
    with pytest.raises(ValueError, match="position_unit: policy None, the robot 1"):
        check_contract(
            replace(joints, names=["x", "y", "z", "gripper"]),
            replace(joints, names=["x", "y", "z", "gripper"], position_unit=1.0),
            "the robot",
        )


def test_a_contract_mismatch_prints_both_sides():
    ours = ActionContract(
        names=["x", "gripper"],
        representation=Representation.delta,
        frame=ReferenceFrame.world,
        position_unit=1.0,
        control_hz=30.0,
    )
    theirs = ActionContract(
        names=["x", "gripper"],
        representation=Representation.delta,
        frame=ReferenceFrame.tcp,
        position_unit=1.0,
        control_hz=30.0,
    )
    with pytest.raises(ValueError, match=r"frame: policy world, sim tcp\n.*data.convert.frame=tcp"):
        check_contract(ours, theirs, "sim")
    check_contract(ours, ours, "sim")
    unknown = replace(ours, position_unit=None)
    check_contract(unknown, unknown, "sim")
    with pytest.raises(ValueError, match=r"position_unit: policy None, sim 1.0\n.*on data that records them"):
        check_contract(unknown, ours, "sim")
