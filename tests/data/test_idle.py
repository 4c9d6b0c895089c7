"""Which steps count as idle, and what becomes of an episode without them."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from recordings import MemoryReader, make_contract, make_dataset

from robovlms.config.choices import Representation, Rotation
from robovlms.config.data import DataConfig, IdleConfig
from robovlms.data.idle import IdleSkippingReader, dwells, find_dwells, kept_steps, step_sizes

ONE = np.zeros(8, np.int64)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOVLMS_CACHE", str(tmp_path))


def config(**idle: float) -> DataConfig:
    """Return a config of 10 Hz that skips idle steps."""
    return make_dataset(MemoryReader([9]), skip_idle=True, idle=IdleConfig(**idle)).config


def moves(pattern: str) -> np.ndarray:
    """Return deltas that move by 0.1 where the pattern has an x, with a gripper that always changes."""
    rows = np.zeros((len(pattern), 7), np.float32)
    rows[:, 1] = [0.1 if step == "x" else 0 for step in pattern]
    rows[:, 6] = np.where(np.arange(len(pattern)) % 2, 1, -1)
    return rows


def kept(pattern: str, episode: np.ndarray = ONE, **idle: float) -> str:
    return "".join(".x"[int(step)] for step in kept_steps(moves(pattern), episode, config(**idle)))


def test_steps_in_which_only_the_gripper_moves_are_idle():
    assert kept("x..x.xx.") == "x..x.xx."


def test_the_first_steps_of_a_dwell_may_stay():
    assert kept("x...x..x", keep_s=0.1) == "xx..xx.x"
    assert kept("....x...", keep_s=0.2) == "xx..xxx."


def test_a_turn_by_nothing_is_idle_however_it_is_written():
    names = ["dx", "dy", "dz", "qx", "qy", "qz", "qw"]
    rows = np.array([[0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0.6, 0.8]], np.float32)
    contract = make_contract(names=names, rotation=Rotation.quaternion)
    assert step_sizes(rows, np.zeros(2, np.int64), contract).tolist() == pytest.approx([0, 0.6])


def test_a_dwell_ends_with_its_episode():
    assert kept("x....x..", np.array([0, 0, 0, 0, 1, 1, 1, 1]), keep_s=0.2) == "xxx.xxxx"


def test_absolute_entries_are_idle_where_they_do_not_change():
    rows = np.zeros((6, 7), np.float32)
    rows[:, 0] = [3, 3, 3, 4, 4, 3]
    contract = make_contract(representation=Representation.absolute)
    sizes = step_sizes(rows, np.array([0, 0, 0, 0, 0, 1]), contract)
    assert sizes.tolist() == [np.inf, 0, 0, 1, 0, np.inf]


def test_dwells_are_counted_and_found():
    idle = np.array([0, 1, 1, 0, 1, 1, 1, 0], bool)
    assert dwells(idle, ONE).tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    assert list(find_dwells(idle, ONE)) == [(1, 2), (4, 6)]
    two = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    assert list(find_dwells(idle, two)) == [(1, 2), (4, 4), (5, 6)]
    assert list(find_dwells(np.ones(8, bool), two)) == [(0, 4), (5, 7)]


def waiting_reader() -> MemoryReader:
    """Return three episodes: one that waits from step 4 to 8, one that never moves, one that always does."""
    reader = MemoryReader([12, 5, 6])
    reader.actions[0][4:9, :6] = 0
    reader.actions[1][:, :6] = 0
    return reader


def test_episodes_that_never_move_are_left_out_with_a_warning(caplog):
    reader = waiting_reader()
    with caplog.at_level(logging.WARNING):
        found = IdleSkippingReader(reader, config())
    assert [episode.length for episode in found.episodes] == [7, 6]
    assert "1 of 3 episodes that data.skip_idle leaves nothing of left out" in caplog.text
    assert found.location(0, 3, 4) == "memory: episode 0, frames 3-9"
    assert found.location(1, 0, 5) == "memory: episode 2, frames 0-5"
    assert np.array_equal(found.frames(0, np.array([4]))["side"][0], reader.pictures["side"][0][9])
    assert found.recorded(0) is None


def test_windows_go_on_behind_a_dwell_at_once():
    reader = waiting_reader()
    dataset = make_dataset(IdleSkippingReader(reader, config()), window_size=3, chunk_size=2)
    sample = dataset[2]  # steps 2, 3 and 9
    assert np.array_equal(sample.frames["side"], reader.pictures["side"][0][[2, 3, 9]])
    np.testing.assert_array_equal(sample.actions[:, 0], reader.actions[0][[2, 3, 9, 10], 0])
    assert len(dataset.rows(100).actions) == 13


def test_what_remains_is_looked_up_once_and_kept(monkeypatch):
    first = IdleSkippingReader(waiting_reader(), config())
    reader = waiting_reader()
    monkeypatch.setattr(reader, "numbers", None)
    assert IdleSkippingReader(reader, config()).episodes == first.episodes
    with pytest.raises(TypeError):
        IdleSkippingReader(reader, config(keep_s=0.5))


def test_a_data_set_in_which_nothing_moves_is_refused():
    with pytest.raises(ValueError, match=r"data.skip_idle=true leaves nothing of memory: 3 episodes: .*threshold=1"):
        IdleSkippingReader(waiting_reader(), config(threshold=1.0))
