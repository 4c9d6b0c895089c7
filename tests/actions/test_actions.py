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
        NormalizationConfig(mode=NormalizationMode.bounds, low=-0.65, high=0.65), STATS, NAMES
    )
    raw = torch.tensor([[0.325, -1.0, 1.0], [0.65, 0.0, -1.0]])
    assert normalizer.normalize(raw).tolist() == [[0.5, -1.0, 1.0], [1.0, 0.0, -1.0]]


def test_actions_inside_the_bounds_survive_the_round_trip():
    for mode in NormalizationMode:
        normalizer = ActionNormalizer(NormalizationConfig(mode=mode), STATS, NAMES)
        raw = torch.tensor([[0.5, 0.0, -1.0]])
        torch.testing.assert_close(normalizer.denormalize(normalizer.normalize(raw)), raw)


def test_an_entry_that_never_moves_becomes_zero_and_comes_back_as_its_constant():
    normalizer = ActionNormalizer(NormalizationConfig(mode=NormalizationMode.min_max), STATS, NAMES)
    normalized = normalizer.normalize(torch.tensor([[1.0, 0.0, 1.0]]))
    assert normalized.tolist() == [[0.0, 0.0, 1.0]]
    assert normalizer.denormalize(torch.tensor([[0.0, 0.7, 1.0]]))[0, 1] == 0


def test_statistics_survive_the_file(tmp_path):
    save_statistics(tmp_path / "stats.json", {"mine": STATS})
    assert load_statistics(tmp_path / "stats.json") == {"mine": STATS}
    assert STATS.mean == [1.0, 0.0, 0.0]
    assert STATS.num_rows == 2


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
