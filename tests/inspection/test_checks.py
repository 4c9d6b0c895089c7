from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from recordings import NAMES, MemoryReader, make_contract, make_dataset

from robovlms.actions.checks import numeric_findings, representation_findings, sparse_findings
from robovlms.actions.statistics import Statistics
from robovlms.config.choices import NormalizationMode, ReferenceFrame, Representation, Resize, Rotation
from robovlms.config.data import NormalizationConfig
from robovlms.inspection.checks import check_data
from robovlms.inspection.scan import Faults, choose_stretches, read_pictures, scan_pictures


def rows(**columns) -> np.ndarray:
    """Return 200 good rows, with the given columns by name."""
    table = MemoryReader([200]).actions[0].copy()
    for name, values in columns.items():
        table[:, NAMES.index(name)] = values
    return table


def findings(actions=None, names=NAMES, **contract):
    found = numeric_findings(rows() if actions is None else actions, make_contract(**contract), names)
    return [(str(finding.severity), finding.what) for finding in found]


def test_good_rows_give_no_finding():
    assert findings() == []


def test_a_number_that_is_not_finite_is_an_error_and_the_others_are_still_looked_at():
    actions = rows(dyaw=0.5)
    actions[7, 1] = np.nan
    (nan, still) = numeric_findings(actions, make_contract(), NAMES)
    assert (nan.severity, nan.what, nan.where) == ("error", "dy: NaN or infinite in 1 of 200 rows", "row 7")
    assert (still.severity, still.what) == ("warning", "never changes: dyaw (0.5)")


def test_rows_that_are_all_broken_or_absent_are_no_crash():
    assert findings(np.full((3, 7), np.inf, np.float32))[0][0] == "error"
    assert findings(np.zeros((0, 7), np.float32)) == []
    with pytest.raises(ValueError, match="7 columns of actions, but 1 names: dx"):
        findings(names=["dx"])


def test_moves_of_half_a_metre_in_a_step_put_the_unit_in_doubt():
    millimetres = rows(dx=np.linspace(-20, 20, 200))
    ((severity, what),) = findings(millimetres)
    assert severity == "error"
    assert what.startswith("data.contract.position_unit=1 looks wrong: moves of more than 0.5 m in one step in 196 of")
    assert findings(millimetres, position_unit=0.001) == []


def test_a_unit_that_is_not_known_puts_nothing_in_doubt():
    assert findings(rows(dx=np.linspace(-20, 20, 200)), position_unit=None) == []
    assert findings(rows(dyaw=np.linspace(-20, 20, 200)), rotation_unit=None) == []


def test_one_wild_row_among_many_is_a_warning_that_names_it():
    actions = rows()
    actions[123, 2] = 0.7
    (finding,) = numeric_findings(actions, make_contract(), NAMES)
    assert (finding.severity, finding.where) == ("warning", "row 123")


def test_moves_too_small_to_be_seen_put_the_unit_in_doubt():
    assert findings(position_unit=1e-5)[0][1].endswith("the largest move in one step is 1e-07 m")


def test_absolute_positions_may_be_far_but_not_ten_metres():
    absolute = {"representation": Representation.absolute}
    assert findings(rows(dx=np.linspace(1, 2, 200)), **absolute) == []
    assert "further than 10 m from the origin" in findings(rows(dx=np.linspace(1, 900, 200)), **absolute)[0][1]


@pytest.mark.parametrize("rotation", [Rotation.euler, Rotation.euler_increment])
def test_degrees_are_angles_beyond_pi(rotation):
    degrees = rows(dyaw=np.linspace(-90, 90, 200))
    assert findings(degrees, rotation=rotation)[0][1].startswith(f"angles ({rotation}) beyond pi in ")
    assert findings(degrees, rotation=rotation, rotation_unit=np.pi / 180) == []


def test_the_length_of_an_axis_angle_is_its_angle():
    names = ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]
    turning = rows(droll=2.5, dpitch=2.5, dyaw=np.linspace(0, 0.1, 200))  # 3.54 rad, though no entry exceeds pi
    found = findings(turning, names=names, rotation=Rotation.axis_angle)
    assert [what.split(" in ")[0] for _, what in found] == [
        "never changes: drx (2.5), dry (2.5)",
        "angles (axis_angle) beyond pi",
    ]


def test_quaternions_have_length_one_and_never_zero():
    names = ["dx", "dy", "dz", "qx", "qy", "qz", "qw", "gripper"]
    small = np.random.default_rng(0).normal(size=(200, 4)) * [0.01, 0.01, 0.01, 0.001] + [0, 0, 0, 1]
    good = small / np.linalg.norm(small, axis=1, keepdims=True)

    def found(quaternions):
        actions = np.concatenate([rows()[:, :3], quaternions, rows()[:, -1:]], axis=1).astype(np.float32)
        return findings(actions, names=names, rotation=Rotation.quaternion)

    assert found(good) == []
    assert found(2 * good)[0][0] == "error"
    assert [what[1].rpartition(": ")[2] for what in found(small[:, [3, 0, 1, 2]])] == ["is w recorded first?"]
    good[5] = 0
    assert found(good) == [("error", "quaternions of length 0")]


def test_six_numbers_are_two_perpendicular_columns():
    names = ["dx", "dy", "dz", "r1", "r2", "r3", "r4", "r5", "r6", "gripper"]
    angles = np.linspace(0.1, 1, 200)
    zero = np.zeros(200)
    columns = np.stack([np.cos(angles), np.sin(angles), zero, -np.sin(angles), np.cos(angles), zero], axis=1)

    def found(six):
        actions = np.concatenate([rows()[:, :3], six, rows()[:, -1:]], axis=1).astype(np.float32)
        return [what for what in findings(actions, names=names, rotation=Rotation.rotation_6d) if what[0] == "error"]

    assert found(columns) == []
    assert len(found(columns[:, [0, 1, 2, 0, 1, 2]])) == 1


@pytest.mark.parametrize(
    ("values", "severity", "text"),
    [
        ((0, 255), "error", "the gripper leaves the range of gripper_closed=-1 and gripper_open=1 (recorded are 0 to"),
        ((0, 1), "warning", "(recorded are 0 to 1): it becomes open above the middle"),
        ((0.01, 0.08), "warning", "(recorded are 0.01 to 0.08): it becomes always open"),
    ],
)
def test_a_gripper_that_is_not_what_was_declared_is_found(values, severity, text):
    ((found, what),) = findings(rows(gripper=np.where(np.arange(200) < 100, *values)))
    assert found == severity
    assert text in what


def sparse(mode: NormalizationMode, **modes: NormalizationMode) -> list[str]:
    stats = Statistics.compute(rows(dyaw=np.where(np.arange(200) == 7, 0.3, 0.0), droll=0.0))
    found = sparse_findings(stats, NormalizationConfig(mode=mode, modes=modes), NAMES, [len(NAMES) - 1])
    return [finding.what for finding in found]


def test_an_entry_whose_quantiles_coincide_is_named_where_they_count():
    told = ["changes so rarely that q01 = q99: dyaw (0 in almost all rows, else 0 to 0.3)"]
    assert sparse(NormalizationMode.quantile) == told
    assert sparse(NormalizationMode.min_max) == []
    assert sparse(NormalizationMode.min_max, dyaw=NormalizationMode.quantile) == told
    assert sparse(NormalizationMode.quantile, dyaw=NormalizationMode.bounds) == []


JOINTS = make_contract(
    names=["j1", "j2", "gripper"], frame=ReferenceFrame.joint, rotation=Rotation.none, position_unit=None
)
PATH = np.stack([0.4 + np.sin(np.linspace(0, 3, 200)), -1 + np.linspace(0, 0.5, 200), np.ones(200)], axis=1)


@pytest.mark.parametrize(
    ("episodes", "contract", "is_suspected"),
    [
        ([PATH, PATH], JOINTS, True),
        ([180 / np.pi * PATH], JOINTS, True),
        ([np.diff(PATH, axis=0)], JOINTS, False),  # moves that begin at once
        ([np.diff(np.cumsum(PATH * np.sin(np.linspace(0, 3.1, 200))[:, None], axis=0), axis=0)], JOINTS, False),
        ([np.random.default_rng(0).normal(size=(200, 3))], JOINTS, False),
        ([PATH], replace(JOINTS, representation=Representation.absolute), False),
        ([PATH[:5]], JOINTS, False),  # too short to tell
        ([], JOINTS, False),
    ],
)
def test_absolute_joints_that_are_declared_to_be_moves_are_suspected(episodes, contract, is_suspected):
    found = representation_findings(episodes, contract)
    assert ["representation=absolute" in finding.to_do for finding in found] == [True] * is_suspected


def test_columns_that_are_not_taught_can_be_left_out():
    assert findings(rows()[:, :3], names=NAMES[:3]) == []


def test_a_gripper_that_starts_closed_and_opens_has_a_suspicious_polarity():
    reader = MemoryReader([20] * 6)
    assert check_data(make_dataset(reader)) == []
    for actions in reader.actions:
        actions[:, -1] *= -1
    (finding,) = check_data(make_dataset(reader))
    assert finding.what == "the gripper starts closed and opens later in 6 of 6 episodes in which it moves"
    assert "data.contract.gripper_closed=1 and gripper_open=-1" in finding.to_do


def test_episodes_without_frames_steps_or_words_are_named():
    reader = MemoryReader([12, 0, 2, 12], ["lift", "lift", "lift", " "])
    found = check_data(make_dataset(reader))
    assert [(str(f.severity), f.what, f.where) for f in found] == [
        ("error", "1 of 4 episodes have no frame", "memory: episode 1, frames 0-0"),
        ("error", "1 of 4 episodes have an empty instruction", "memory: episode 3, frames 0-11"),
        ("warning", "1 of 4 episodes have fewer steps than window.window_size=3", "memory: episode 2, frames 0-1"),
    ]
    assert {f.severity for f in check_data(make_dataset(reader, skip_bad=True))} == {"warning"}


def test_a_declared_rate_that_is_not_the_recorded_one_is_an_error():
    reader = MemoryReader([12, 12])
    reader.fps = 30.0
    (finding,) = check_data(make_dataset(reader))
    assert finding.what == "recorded at 30 frames a second, but data.contract.control_hz=10"
    reader.fps = 10.2
    assert check_data(make_dataset(reader)) == []


def test_frozen_and_blank_pictures_are_named_by_view_and_frame():
    reader = MemoryReader([20, 20])
    reader.pictures["wrist"][1][6:12] = reader.pictures["wrist"][1][6]
    reader.pictures["side"][0][3] = 0
    (blank, frozen) = check_data(make_dataset(reader))
    assert (blank.what, blank.where) == (
        "view 'side' has 1 pictures of one colour",
        "memory: episode 0, frames 3-3",
    )
    assert frozen.what.startswith("view 'wrist' shows the same picture again in 5 of 38 steps; the longest run is 6")
    assert frozen.where == "memory: episode 1, frames 6-11"


def test_two_frozen_frames_make_no_finding():
    reader = MemoryReader([20, 20])
    reader.pictures["wrist"][1][6:8] = reader.pictures["wrist"][1][6]
    assert check_data(make_dataset(reader)) == []


def test_pictures_of_several_sizes_need_the_host():
    reader = MemoryReader([12, 12])
    reader.pictures["side"][1] = reader.pictures["side"][1][:, :32]
    (finding,) = check_data(make_dataset(reader))
    assert finding.what == "view 'side' has pictures of several sizes: 40 x 48, 32 x 48"
    assert (str(finding.severity), finding.where) == ("error", "memory: episode 1, frames 0-0")
    assert check_data(make_dataset(reader, resize=Resize.host)) == []


def test_a_picture_that_cannot_be_read_is_an_error_and_its_neighbours_are_looked_at():
    reader = MemoryReader([12, 12])
    reader.unreadable = {(1, 4)}
    (finding,) = check_data(make_dataset(reader))
    assert (finding.what, finding.where) == ("1 pictures cannot be read", "picture 4 of episode 1 is damaged")
    views, faults = scan_pictures(reader, choose_stretches(reader.episodes, 100))
    assert (views["side"].frames, views["side"].pairs, faults.count) == (23, 20, 1)


def test_pictures_come_in_order_and_the_unreadable_are_counted():
    reader = MemoryReader([30])
    reader.unreadable = {(0, 0), (0, 29)}
    faults = Faults()
    steps = [step for step, _ in read_pictures(reader, 0, np.arange(30), faults)]
    assert steps == list(range(1, 29))
    assert faults.messages == ["picture 0 of episode 0 is damaged", "picture 29 of episode 0 is damaged"]


def test_a_budget_takes_whole_episodes_evenly():
    episodes = MemoryReader([10, 10, 0, 10, 10]).episodes
    assert choose_stretches(episodes, 40) == [(0, 10), (1, 10), (3, 10), (4, 10)]
    assert choose_stretches(episodes, 25) == [(0, 10), (3, 10)]
    assert choose_stretches(episodes, 4) == [(0, 4)]
    assert choose_stretches(MemoryReader([0]).episodes, 4) == []
