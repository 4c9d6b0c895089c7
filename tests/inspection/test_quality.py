"""What makes a recording hard to learn from is found, named, and comes with the option to set."""

from __future__ import annotations

import numpy as np
import pytest
from recordings import MemoryReader, make_contract, make_dataset

from robovlms.config.choices import Representation
from robovlms.config.data import IdleConfig
from robovlms.data.base import Numbers
from robovlms.data.idle import IdleSkippingReader
from robovlms.inspection.quality import measure_idleness, quality_findings
from robovlms.inspection.report import inspect_dataset
from robovlms.inspection.scan import choose_stretches, scan_numbers
from robovlms.inspection.text import format_report


class StatefulReader(MemoryReader):
    """Episodes whose states are the sums of their actions."""

    def __init__(self, lengths: list[int], instructions: list[str] | None = None) -> None:
        super().__init__(lengths, instructions)
        self.states = [np.cumsum(actions, axis=0, dtype=np.float32)[:, :3] for actions in self.actions]

    def numbers(self, episode, steps):
        return Numbers(self.actions[episode][steps], self.states[episode][steps])


def recording() -> MemoryReader:
    """Return two tasks of three episodes of 88 steps (10 Hz); in one of them the hand waits for 40 in the middle."""
    reader = MemoryReader([88] * 6, ["open the drawer"] * 3 + ["lift the cup"] * 3)
    for actions in reader.actions[3:]:
        actions[30:70, :6] *= 1e-4
    return reader


def findings(reader, **changes) -> list[str]:
    dataset = make_dataset(reader, **changes)
    rows = scan_numbers(reader, choose_stretches(reader.episodes, 10_000))
    return [str(finding) for finding in quality_findings(dataset, rows, measure_idleness(dataset, rows))]


def test_a_hand_that_waits_in_the_middle_of_one_task_is_named_with_the_option_to_set():
    (told,) = findings(recording())
    assert told.startswith("warning: the arm waits in the middle of episodes in a large share of the steps: ")
    assert "'lift the cup' 45% (other tasks 0% to 0%); for up to 40 steps (4.0 s)" in told
    assert "[memory: episode 3, frames 30-69]" in told
    assert "data.skip_idle=true data.idle.threshold=" in told


def test_the_options_that_are_advised_remove_what_was_found(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOVLMS_CACHE", str(tmp_path))
    reader = recording()
    dataset = make_dataset(reader)
    rows = scan_numbers(reader, choose_stretches(reader.episodes, 10_000))
    threshold = measure_idleness(dataset, rows).threshold
    idle = {"skip_idle": True, "idle": IdleConfig(threshold=threshold, keep_s=0.3)}
    cut = IdleSkippingReader(reader, make_dataset(reader, **idle).config)
    assert [episode.length for episode in cut.episodes] == [88] * 3 + [51] * 3
    assert findings(cut, **idle) == []


def test_waiting_at_the_ends_is_told_from_waiting_inside():
    reader = MemoryReader([60] * 4, ["lift the cup"] * 4)
    for actions in reader.actions:
        actions[:10, :6] = 0
        actions[-10:, :6] = 0
    (told,) = findings(reader)
    assert "waits before the first or after the last move in a large share of the steps: 'lift the cup' 33%" in told


@pytest.mark.parametrize("waits", [0, 8])
def test_short_rests_are_no_finding(waits):
    reader = MemoryReader([80] * 4)
    for actions in reader.actions:
        actions[20 : 20 + waits, :6] = 0
    assert findings(reader) == []


def test_absolute_targets_that_do_not_change_are_waiting():
    reader = MemoryReader([60] * 3)
    for actions in reader.actions:
        actions[:, :6] = np.cumsum(actions[:, :6], axis=0)
        actions[20:40, :6] = actions[20, :6]
    (told,) = findings(reader, contract=make_contract(representation=Representation.absolute))
    assert "in the middle of episodes" in told


def test_a_state_that_leaps_is_named():
    reader = StatefulReader([60] * 5)
    reader.states[3][25:, 1] += 0.8
    (told,) = findings(reader, proprio_key="s", proprio_names=["x", "y", "z"])
    assert "the state's y jumps within a step, 1 times; y by 0.8" in told
    assert "[memory: episode 3, frames 24-25]" in told


def test_states_that_are_not_numbers_leap_nowhere():
    reader = StatefulReader([60] * 5)
    reader.states[1][:, 2] = np.nan
    reader.states[2][7] = np.inf
    assert findings(reader, proprio_key="s", proprio_names=["x", "y", "z"]) == []


def test_an_angle_that_passes_pi_does_not_leap():
    reader = StatefulReader([60] * 5)
    for states in reader.states:
        states[:, 2] = (np.arange(60) * 0.15 + np.pi) % (2 * np.pi) - np.pi
    assert findings(reader, proprio_key="s", proprio_names=["x", "y", "yaw"]) == []


def test_copies_of_episodes_are_named_where_the_instruction_is_the_same_too():
    reader = MemoryReader([20] * 4, ["a", "a", "a", "b"])
    reader.actions[2] = reader.actions[0].copy()
    reader.actions[3] = reader.actions[1].copy()
    (told,) = findings(reader)
    assert "1 episodes are copies of others, number for number: 2 of 0 [memory: episode 2, frames 0-19]" in told


def test_one_instruction_for_nearly_everything_is_named_in_a_large_data_set():
    assert findings(MemoryReader([8] * 19, ["a"] * 19)) == []
    assert "30 of 30 episodes have the instruction 'a'" in findings(MemoryReader([8] * 30, ["a"] * 30))[0]
    assert findings(MemoryReader([8] * 30, ["a"] * 15 + ["b"] * 15)) == []


def test_a_black_camera_with_the_noise_of_a_codec_is_named():
    reader = MemoryReader([25] * 2)
    noise = np.random.default_rng(0)
    for pictures in reader.pictures["wrist"]:
        pictures[:] = noise.integers(0, 4, pictures.shape)
    report = inspect_dataset(make_dataset(reader), name="m", split="train", max_frames=60, outlier_iqr=3.0)
    assert any("view 'wrist' has 50 pictures of one colour" in finding.what for finding in report.findings)


def test_the_report_has_a_line_of_idle_steps_for_every_task():
    report = inspect_dataset(make_dataset(recording()), name="m", split="train", max_frames=600, outlier_iqr=3.0)
    lines = [line.split() for line in format_report(report).splitlines() if line.startswith("  lift the cup")]
    assert lines == [["lift", "the", "cup", "0%", "45%", "0.0", "s", "4.0", "s"]]
