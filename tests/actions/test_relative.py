"""Chunks relative to the state that they are predicted from: there, back, and what cannot be."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from recordings import make_contract

from robovlms.actions.conversion import ActionConverter
from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.plan import Source
from robovlms.actions.relative import relative_findings
from robovlms.actions.statistics import Statistics, load_statistics, save_statistics
from robovlms.config.choices import NormalizationMode, ReferenceFrame, RelativeTo, Representation, Rotation
from robovlms.config.data import ConvertConfig, DataConfig, NormalizationConfig
from robovlms.errors import UserError

K = 3
JOINTS = ["shoulder", "elbow", "gripper"]
POSE = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]


def source_of(names=JOINTS, proprio_names=JOINTS, seen=None, mode=NormalizationMode.quantile, convert=None, **contract):
    joints = {"representation": Representation.absolute, "frame": ReferenceFrame.joint, "rotation": Rotation.none,
              "position_unit": None}  # fmt: skip
    config = DataConfig(
        name="arm", root="/nowhere", views={"side": "a"}, contract=make_contract(names=names, **(joints | contract)),
        normalization=NormalizationConfig(mode=mode), proprio_key="state", proprio_names=list(proprio_names),
        proprio_seen=seen, convert=ConvertConfig(relative_to=RelativeTo.state, **(convert or {})),
    )  # fmt: skip
    return Source.of(config)


def normalizer_of(source, chunks, states):
    """Return the normaliser of chunks "n k a" and the states "n p" that they are predicted from."""
    plain = ActionNormalizer(
        source.config.normalization, Statistics.compute(chunks[:, 0]), source.contract.names, source.contract.binary
    )
    assert not plain.is_relative
    absolute = Statistics.compute(chunks.reshape(-1, chunks.shape[-1]))
    relative = chunks.copy()
    for entry in source.relative:
        relative[..., entry.action] -= (states[:, None, entry.state] - np.float32(entry.zero)) / np.float32(entry.unit)
    steps = [Statistics.compute(relative[:, step]) for step in range(chunks.shape[1])]
    stats = replace(absolute, steps=steps)
    return ActionNormalizer(
        source.config.normalization, stats, source.contract.names, source.contract.binary, source.relative
    )


def recording(num=40, dims=3):
    """Return chunks "n k a" that lead away from their states "n p", the further the later."""
    generator = np.random.default_rng(0)
    states = generator.uniform(-100, 100, (num, dims)).astype(np.float32)
    moves = generator.uniform(-1, 1, (num, K, dims)) * np.arange(1, K + 1)[:, None]
    chunks = (states[:, None] + moves).astype(np.float32)
    chunks[..., -1] = np.sign(chunks[..., -1])
    return chunks, states


def test_what_is_relative_is_the_difference_from_the_state_and_the_gripper_is_not():
    normalizer = normalizer_of(source_of(mode=NormalizationMode.identity), *recording())
    chunk, state = torch.tensor([[11.0, 22.0, 1.0], [12.0, 24.0, -1.0]]), torch.tensor([10.0, 20.0, 0.4])
    assert normalizer.normalize(chunk, state).tolist() == [[1, 2, 1], [2, 4, -1]]
    assert normalizer.denormalize(torch.tensor([[1.0, 2.0, 0.3]]), state).tolist() == [[11, 22, pytest.approx(0.3)]]


@pytest.mark.parametrize("mode", list(NormalizationMode))
@pytest.mark.parametrize("mu", [0.0, 255.0])
def test_chunks_come_back_to_a_millionth_of_their_range(mode, mu):
    chunks, states = recording()
    source = source_of(mode=mode)
    config = replace(source.config.normalization, low=-3.0, high=3.0, mu=mu)
    source = replace(source, config=replace(source.config, normalization=config))
    normalizer = normalizer_of(source, chunks, states)
    normal = normalizer.normalize(torch.from_numpy(chunks), torch.from_numpy(states))
    back = normalizer.denormalize(normal, torch.from_numpy(states)).numpy()
    bound = 1.0 if mode is NormalizationMode.quantile else math.inf  # beyond it, actions are clipped
    is_inside = np.abs(normal.numpy()[..., :2]) < bound
    assert is_inside.mean() > 0.9
    assert np.abs(back - chunks)[..., :2][is_inside].max() <= 1e-6 * np.ptp(chunks[..., :2])
    np.testing.assert_array_equal(back[..., -1], chunks[..., -1])


def test_every_step_of_a_chunk_has_bounds_of_its_own():
    chunks, states = recording(num=2000)
    normal = normalizer_of(source_of(mode=NormalizationMode.min_max), chunks, states).normalize(
        torch.from_numpy(chunks), torch.from_numpy(states)
    )
    torch.testing.assert_close(normal[..., :2].amin((0, 2)), torch.full((K,), -1.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal[..., :2].amax((0, 2)), torch.full((K,), 1.0), atol=1e-4, rtol=0)


def test_a_step_that_never_leaves_the_state_comes_back_as_the_state():
    chunks, states = recording()
    chunks[:, 0, :2] = states[:, :2]
    normalizer = normalizer_of(source_of(), chunks, states)
    normal = normalizer.normalize(torch.from_numpy(chunks), torch.from_numpy(states))
    assert (normal[:, 0, :2] == 0).all()
    back = normalizer.denormalize(torch.full((K, 3), 0.7), torch.tensor([5.0, 6.0, 0.0]))
    assert back[0, :2].tolist() == [5, 6]


def pose_source(**changes):
    values = {"frame": ReferenceFrame.base, "rotation": Rotation.euler, "position_unit": 1.0}
    return source_of(POSE, POSE[:-1], **(values | changes))


def test_angles_turn_the_short_way_and_come_back_within_half_a_turn():
    normalizer = normalizer_of(pose_source(mode=NormalizationMode.identity), *recording(dims=7))
    state = torch.tensor([0.1, 0.2, 0.3, 3.1, 0.0, -3.1])
    chunk = torch.tensor([[0.1, 0.2, 0.4, -3.1, 0.1, 3.1, 1.0]])
    normal = normalizer.normalize(chunk, state)
    turn = 2 * math.pi - 6.2
    torch.testing.assert_close(normal, torch.tensor([[0.0, 0.0, 0.1, turn, 0.1, -turn, 1.0]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(normalizer.denormalize(normal, state), chunk, atol=1e-6, rtol=0)


def test_states_in_metres_and_radians_are_read_in_the_units_of_the_action():
    source = pose_source(position_unit=0.02, rotation_unit=math.pi / 180, mode=NormalizationMode.identity)
    normalizer = normalizer_of(source, *recording(dims=7))
    state = torch.tensor([0.1, 0.2, 0.3, math.pi / 2, 0.0, -math.pi * 179 / 180])
    chunk = torch.tensor([[6.0, 10.0, 15.0, 100.0, 5.0, 179.0, 1.0]])
    expected = torch.tensor([[1.0, 0.0, 0.0, 10.0, 5.0, -2.0, 1.0]])
    torch.testing.assert_close(normalizer.normalize(chunk, state), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(normalizer.denormalize(expected, state), chunk, atol=1e-4, rtol=0)


def test_chosen_entries_alone_are_relative_and_states_stand_in_any_order():
    source = source_of(proprio_names=["gripper", "elbow", "shoulder"], convert={"relative": ["elbow"]})
    assert [(e.name, e.action, e.state) for e in source.relative] == [("elbow", 1, 1)]
    normalizer = normalizer_of(replace(source, config=replace(
        source.config, normalization=NormalizationConfig(mode=NormalizationMode.identity))), *recording())  # fmt: skip
    assert normalizer.normalize(torch.tensor([[5.0, 7.0, 1.0]]), torch.tensor([1.0, 2.0, 3.0])).tolist() == [[5, 5, 1]]


WIDTHS = {"continuous_grippers": ["gripper"], "gripper_closed": 0.0, "gripper_open": 80.0}


def test_an_opening_width_stays_absolute_unless_it_is_chosen():
    assert [entry.name for entry in source_of(**WIDTHS).relative] == ["shoulder", "elbow"]
    chosen = source_of(convert={"relative": ["elbow", "gripper"]}, **WIDTHS).relative
    assert [(entry.name, entry.action, entry.unit, entry.zero) for entry in chosen] == [
        ("elbow", 1, 1.0, 0.0), ("gripper", 2, 40.0, 40.0),
    ]  # fmt: skip


@pytest.mark.parametrize(("closed", "opened"), [(0.0, 80.0), (1.0, 0.0), (-1.0, 1.0), (0.5, 5.4)])
def test_a_chosen_opening_width_is_the_difference_from_the_states_and_comes_back(closed, opened):
    widths = {"gripper_closed": closed, "gripper_open": opened, "continuous_grippers": ["gripper"]}
    source = source_of(convert={"relative": JOINTS}, mode=NormalizationMode.identity, **widths)
    chunks, states = recording()
    share = np.random.default_rng(1).uniform(0, 1, (len(states), 1 + K)).astype(np.float32)
    recorded = closed + share * (opened - closed)
    states[:, -1], actions = recorded[:, 0], np.concatenate([chunks[..., :-1], recorded[:, 1:, None]], -1)
    converter = ActionConverter(source.config, source.contract)
    spoken = np.stack([converter(each.astype(np.float32), None, np.arange(K)) for each in actions])
    normalizer = normalizer_of(source, spoken, states)
    normal = normalizer.normalize(torch.from_numpy(spoken), torch.from_numpy(states))
    np.testing.assert_allclose(normal[..., -1], 2 * (share[:, 1:] - share[:, :1]), atol=1e-5)
    back = normalizer.denormalize(normal, torch.from_numpy(states)).numpy()
    np.testing.assert_allclose(back, spoken, atol=1e-6 * np.ptp(spoken))


def test_of_two_grippers_one_may_be_relative_and_the_other_a_decision():
    names = ["left/gripper", "left/j1", "right/gripper", "right/j1"]
    source = source_of(names, names, convert={"relative": ["right/gripper", "left/j1"]},
                       continuous_grippers=["right/gripper"], mode=NormalizationMode.identity)  # fmt: skip
    none = Statistics.compute(np.zeros((1, 4), np.float32))
    stats = replace(none, steps=[none])
    normalizer = ActionNormalizer(source.config.normalization, stats, names, source.contract.binary, source.relative)
    state = torch.tensor([0.2, 10.0, 0.5, 7.0])
    assert normalizer.normalize(torch.tensor([[1.0, 12.0, 0.75, 7.0]]), state).tolist() == [[1, 2, 0.25, 7]]


def test_a_robot_sends_what_the_policy_sees_then_what_actions_are_relative_to():
    source = source_of(seen=["gripper"])
    assert (source.proprio_names, source.seen_names) == (["gripper", "shoulder", "elbow"], ["gripper"])
    assert [entry.state for entry in source.relative] == [1, 2]
    assert source_of(seen=[]).proprio_names == ["shoulder", "elbow"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"representation": Representation.delta}, "these are delta: they are relative already"),
        ({"proprio_names": ["q1", "q2"]}, r"data\.proprio_names=\['q1', 'q2'\] has no shoulder, elbow: set"),
        ({"proprio_names": ["shoulder"], "convert": {"relative": JOINTS[:2]}}, "has no elbow: set data.proprio_key"),
        ({"convert": {"relative": ["wrist"]}}, "relative has wrist, not among shoulder, elbow"),
        (
            {"convert": {"relative": ["gripper"]}},
            r"open or closed is a decision(.|\n)*or set data\.contract\.continuous_grippers=\[gripper\]",
        ),
        (
            {"convert": {"relative": ["gripper"]}, "continuous_grippers": ["gripper"], "proprio_names": JOINTS[:2]},
            "has no gripper: set data.proprio_key",
        ),
        ({"convert": {"relative": []}}, "needs proprioception of the same names"),
    ],
)
def test_entries_that_cannot_be_relative_are_refused_with_what_to_set(changes, message):
    with pytest.raises(UserError, match=message):
        source_of(**changes)


def test_entries_without_relative_to_are_refused():
    source = source_of()
    convert = ConvertConfig(relative=["elbow"])
    with pytest.raises(UserError, match=r"relative=\['elbow'\] needs data.convert.relative_to=state"):
        Source.of(replace(source.config, convert=convert))


@pytest.mark.parametrize(
    ("rotation", "names"),
    [
        (Rotation.quaternion, ["qx", "qy", "qz", "qw"]),
        (Rotation.axis_angle, ["rx", "ry", "rz"]),
        (Rotation.rotation_6d, [f"r{i}" for i in range(1, 7)]),
    ],
)
def test_rotations_without_a_difference_are_refused_with_the_entries_to_leave(rotation, names):
    all_names = ["x", "y", "z", *names, "gripper"]
    where = {"frame": ReferenceFrame.base, "rotation": rotation, "position_unit": 1.0}
    with pytest.raises(UserError, match=r"leave them absolute with data.convert.relative=\[x,y,z\]"):
        source_of(all_names, all_names[:-1], **where)
    source = source_of(all_names, all_names[:-1], convert={"relative": ["x", "y", "z"]}, **where)
    assert [entry.name for entry in source.relative] == ["x", "y", "z"]


def test_a_unit_that_is_not_known_is_asked_for():
    with pytest.raises(UserError, match=r"data\.contract\.position_unit must be known"):
        pose_source(position_unit=None)


def test_statistics_of_steps_are_saved_and_those_of_others_are_as_before(tmp_path):
    chunks, states = recording()
    plain = Statistics.compute(chunks[:, 0])
    stepped = replace(plain, steps=[Statistics.compute(chunks[:, step] - states) for step in range(K)])
    save_statistics(tmp_path / "stats.json", {"arm": stepped, "other": plain})
    assert load_statistics(tmp_path / "stats.json") == {"arm": stepped, "other": plain}
    assert "steps" not in plain.to_json()
    wide = stepped.scatter([2, 0, 3], 4)
    assert wide.steps[1].mean == [stepped.steps[1].mean[1], 0.0, stepped.steps[1].mean[0], stepped.steps[1].mean[2]]


def test_statistics_of_absolute_actions_are_no_statistics_of_relative_ones():
    source = source_of()
    plain = Statistics.compute(recording()[0][:, 0])
    with pytest.raises(UserError, match="relative to the state, but the statistics are of absolute actions"):
        ActionNormalizer(
            source.config.normalization, plain, source.contract.names, source.contract.binary, source.relative
        )


@pytest.mark.parametrize(("spoil", "is_found"), [(lambda s: s, False), (lambda s: -s, True), (lambda s: s * 57, True)])
def test_states_that_actions_do_not_follow_are_suspected(spoil, is_found):
    source, (chunks, states) = source_of(), recording()
    relative = chunks[:, 0] - spoil(states)
    stats = replace(Statistics.compute(chunks[:, 0]), steps=[Statistics.compute(relative)])
    found = relative_findings(stats, source.relative)
    assert bool(found) is is_found
    assert all("shoulder" in str(finding) and "another unit, sign or order" in str(finding) for finding in found)
