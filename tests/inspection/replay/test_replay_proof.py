"""Recorded actions come back from the policy's words, and what is wrong with them is called by its name."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recordings import NAMES, MemoryReader, make_contract, make_dataset
from scipy.spatial import transform

from robovlms.config.choices import NormalizationMode, ReferenceFrame, RelativeTo, Representation, Rotation
from robovlms.config.data import ConvertConfig, DataConfig, NormalizationConfig
from robovlms.data.base import Numbers
from robovlms.inspection.replay.axes import describe
from robovlms.inspection.replay.following import follow
from robovlms.inspection.replay.round_trip import round_trip
from robovlms.inspection.report import inspect_dataset
from robovlms.inspection.scan import choose_stretches, scan_numbers
from robovlms.inspection.text import format_report

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
from replay_mutations import RECORDINGS, open_recording, tried

R = transform.Rotation
POSE = ["x", "y", "z", "roll", "pitch", "yaw"]
QUICK = ("CALVIN", "Franka, hand deltas", "PushT, image", "Bridge")
TOO_SHORT = {("Bridge", "rate: actions at half the rate of the states")}  # 4 steps an episode are left


class MovingReader(MemoryReader):
    """Episodes of a hand that does exactly what deltas of the given frame ask for; states are its pose and gripper."""

    def __init__(self, frame: ReferenceFrame = ReferenceFrame.base, episodes: int = 6, length: int = 60) -> None:
        super().__init__([length] * episodes)
        generator = np.random.default_rng(1)
        self.states = []
        for actions in self.actions:
            smooth = np.cumsum(generator.normal(0, 0.003, (length, 6)), axis=0)
            actions[:, :6] = smooth - smooth.mean(axis=0)
            position, facing = np.array([0.5, 0.0, 0.3]), R.from_euler("xyz", [3.0, 0.4, 1.0])
            states = []
            for action in actions.astype(np.float64):
                states.append([*position, *facing.as_euler("xyz"), action[6]])
                moved, turned = action[:3], R.from_euler("xyz", action[3:6])
                in_hand = frame is ReferenceFrame.tcp
                position = position + (facing.apply(moved) if in_hand else moved)
                facing = facing * turned if in_hand else turned * facing
            self.states.append(np.array(states, np.float32))

    def numbers(self, episode, steps):
        return Numbers(self.actions[episode][steps], self.states[episode][steps])


def moving(reader: MemoryReader, **changes) -> tuple[DataConfig, list[str]]:
    """Return the config of such a reader, and what is said of its replay."""
    options = {"proprio_key": "state", "proprio_names": [*POSE, "gripper"], "proprio_rotation": Rotation.euler}
    dataset = make_dataset(reader, **options | changes)
    rows = scan_numbers(reader, choose_stretches(reader.episodes, 10_000))
    return dataset.config, [finding.what for finding in follow(dataset.config, rows).findings]


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECORDINGS]
)
def test_mutations_of_real_recordings_are_called_by_their_names(name, shared_data):
    recording = open_recording(name, shared_data)
    assert follow(recording.config, recording.rows).findings == []
    missed = {(name, label) for label, (caught, count) in tried(recording, most=1).items() if caught < count}
    assert missed <= TOO_SHORT


@pytest.mark.parametrize("frame", [ReferenceFrame.base, ReferenceFrame.tcp])
def test_the_frame_that_actions_are_in_is_told_from_the_other(frame):
    reader = MovingReader(frame)
    assert moving(reader, contract=make_contract(frame=frame))[1] == []
    other = ReferenceFrame.tcp if frame is ReferenceFrame.base else ReferenceFrame.base
    position, turn = moving(reader, contract=make_contract(frame=other))[1]
    assert position.startswith("dx, dy, dz fit frame=")
    assert f"not data.contract.frame={other}" in position
    assert turn.startswith("droll, dpitch, dyaw fit frame=")


def test_entries_of_two_arms_are_compared_with_the_states_of_their_own_arm():
    reader = MovingReader()
    for place, actions in enumerate(reader.actions):
        other = reader.actions[place - 1]
        reader.actions[place] = np.concatenate([actions[:, :6], other[:, :6], actions[:, 6:]], axis=1)
    states = reader.states
    reader.states = [np.concatenate([states[i][:, :6], states[i - 1]], axis=1) for i in range(len(states))]
    names = [f"{arm}/{name}" for arm in ("left", "right") for name in NAMES[:6]]
    config, _ = moving(MovingReader())
    contract = make_contract(names=[*names, "gripper"], rotation=Rotation.euler)
    proprio = [f"{arm}/{name}" for arm in ("left", "right") for name in POSE]
    data = replace(config, contract=contract, proprio_names=[*proprio, "gripper"])
    rows = scan_numbers(reader, choose_stretches(reader.episodes, 10_000))
    assert follow(data, rows).findings == []
    spoiled = rows.actions.copy()
    spoiled[:, 7] *= -1
    told = follow(data, replace(rows, actions=spoiled)).findings
    assert [finding.what for finding in told] == ["right/dy looks inverted"]


@pytest.mark.parametrize("gain", [0.2, 0.8, 1.4])
def test_a_controller_that_reaches_a_part_of_each_delta_is_no_fault(gain):
    reader = MovingReader()
    for states in reader.states:
        states[:, :3] = states[0, :3] + gain * (states[:, :3] - states[0, :3])
    assert moving(reader)[1] == []


def test_where_the_unit_is_not_known_signs_and_axes_are_judged_all_the_same():
    reader = MovingReader()
    for actions in reader.actions:
        actions[:, :3] *= 100
    assert "factor 100, the actions say more than the states do: centimetres?" in moving(reader)[1][0]
    unknown = make_contract(position_unit=None, rotation_unit=None)
    assert moving(reader, contract=unknown)[1] == []
    for actions in reader.actions:
        actions[:, 2] *= -1
    assert moving(reader, contract=unknown)[1] == ["dz looks inverted"]


@pytest.mark.parametrize("mode", [NormalizationMode.quantile, NormalizationMode.mean_std])
def test_actions_relative_to_the_state_come_back_from_every_step_of_a_chunk(mode):
    reader = MovingReader()
    for place, states in enumerate(reader.states):  # what is asked for is the next pose; the yaw crosses half a turn
        states[:, 5] += 3
        following = np.concatenate([states[1:, :6], states[-1:, :6]])
        reader.actions[place] = np.concatenate([following, reader.actions[place][:, 6:]], axis=1)
    dataset = make_dataset(
        reader,
        contract=make_contract(names=[*POSE, "gripper"], representation=Representation.absolute, rotation_unit=1.0),
        proprio_key="state",
        proprio_names=[*POSE, "gripper"],
        proprio_rotation=Rotation.euler,
        convert=ConvertConfig(relative_to=RelativeTo.state),
        normalization=NormalizationConfig(mode=mode),
    )
    trip = round_trip(dataset, scan_numbers(reader, choose_stretches(reader.episodes, 10_000)))
    found = {entry.name: entry.error for entry in trip.entries if entry.undone == "difference from the state"}
    assert list(found) == POSE
    assert max(found.values()) < 1e-5
    assert trip.findings == []


def test_too_little_data_is_not_judged():
    reader = MovingReader(episodes=2, length=20)
    for actions in reader.actions:
        actions[:, 0] *= -1
    assert moving(reader)[1] == []


def test_states_that_stand_still_are_not_judged():
    reader = MovingReader()
    for states in reader.states:
        states[:] = states[0]
    assert moving(reader)[1] == []


def test_without_proprioception_the_report_says_what_cannot_be_compared():
    report = inspect_dataset(make_dataset(MemoryReader([30] * 3)), name="m", split="train", max_frames=90,
                             outlier_iqr=3.0)  # fmt: skip
    assert report.replay.following == []
    assert report.replay.not_compared == NAMES[:6]
    assert "no recorded state of dx, dy, dz, droll, dpitch, dyaw" in format_report(report)


def test_the_report_says_at_which_delay_and_how_far_states_follow():
    dataset = make_dataset(MovingReader(), proprio_key="s", proprio_names=[*POSE, "gripper"],
                           proprio_rotation=Rotation.euler)  # fmt: skip
    report = inspect_dataset(dataset, name="m", split="train", max_frames=1000, outlier_iqr=3.0)
    entry = report.replay.following[0]
    assert (entry.name, entry.lag) == ("dx", 0)
    assert entry.gain == pytest.approx(1, abs=1e-4)
    assert entry.correlation == pytest.approx(1, abs=1e-4)
    assert entry.drift < 1e-5
    assert "States follow the actions" in format_report(report)


@pytest.mark.parametrize("mode", NormalizationMode)
@pytest.mark.parametrize("mu", [0.0, 255.0])
def test_every_normalisation_gives_back_what_was_recorded(mode, mu):
    reader = MovingReader()
    config = NormalizationConfig(mode=mode, mu=mu, low=-0.02, high=0.03)
    found = round_trip(make_dataset(reader, normalization=config), rows_of(reader))
    assert len(found.entries) == 7
    assert all(entry.error <= 1e-5 for entry in found.entries)
    assert found.findings == []


@pytest.mark.parametrize(
    "asked",
    [
        {"rotation": Rotation.quaternion},
        {"rotation": Rotation.euler_increment},
        {"frame": ReferenceFrame.tcp, "rotation": Rotation.axis_angle},
        {"representation": Representation.absolute, "rotation": Rotation.rotation_6d},
        {"position_unit": 0.05, "rotation_unit": 0.1},
    ],
)
def test_every_conversion_is_undone(asked):
    reader = MovingReader()
    dataset = make_dataset(reader, convert=ConvertConfig(**asked), proprio_key="s", proprio_names=[*POSE, "gripper"],
                           proprio_rotation=Rotation.euler)  # fmt: skip
    found = round_trip(dataset, rows_of(reader))
    assert {entry.undone for entry in found.entries} == {"normalisation", "conversion"}
    assert max(entry.error for entry in found.entries if entry.undone == "conversion") < 1e-4
    assert found.findings == []


def test_rows_beyond_the_bounds_are_counted_and_wrong_bounds_are_a_warning():
    reader = MovingReader()
    for actions in reader.actions:
        actions[:, 1] = np.where(np.arange(60) < 6, 0.5, 0.0)
    normal = NormalizationConfig(mode=NormalizationMode.bounds, low=-0.2, high=0.2)
    found = round_trip(make_dataset(reader, normalization=normal), rows_of(reader))
    assert {entry.name: entry.beyond for entry in found.entries if entry.beyond} == {"dy": 36}
    assert found.findings == []
    tight = NormalizationConfig(mode=NormalizationMode.bounds, low=-1e-4, high=1e-4)
    told = round_trip(make_dataset(reader, normalization=tight), rows_of(reader)).findings
    assert "dx" in told[0].what
    assert "far outside the bounds of the normalisation" in told[0].what


def test_a_range_that_float32_cannot_hold_is_not_called_a_fault_of_the_data():
    reader = MovingReader()
    for actions in reader.actions:
        actions[:, 0] = 4.0e6 + np.arange(60) % 3
    found = round_trip(make_dataset(reader), rows_of(reader))
    assert found.findings == []


def test_a_turn_is_named_by_its_angle_and_axis():
    matrix = R.from_euler("z", -30, degrees=True).as_matrix()
    assert describe(matrix, ["a", "b", "c"]) == "a, b, c look rotated by 30 degrees about z: frame?"
    swapped = np.array([[0, 0, 1.0], [0, 1, 0], [1, 0, 0]])
    assert describe(swapped, ["a", "b", "c"]) == "a and c look swapped"


def rows_of(reader: MemoryReader):
    return scan_numbers(reader, choose_stretches(reader.episodes, 10_000))
