from __future__ import annotations

import numpy as np

from robovlms.data.base import RobotDataset
from robovlms.data.cached import CachedDataset
from robovlms.types import Sample


class Counted(RobotDataset):
    """Four windows of half a megabyte, and how often each was read."""

    def __init__(self):
        self.reads = [0, 0, 0, 0]
        self.sizes, self.weights = [4], [1.0]

    def __len__(self):
        return 4

    def __getitem__(self, index):
        self.reads[index] += 1
        frames = {"side": np.full((1, 500, 500, 2), index, np.uint8)}
        return Sample(frames=frames, actions=np.zeros((1, 2), np.float32), action_mask=np.ones(1, bool), instruction="")

    def location(self, index):
        return f"window {index}"

    def summary(self):
        return "four windows"


def test_a_window_is_read_once_and_what_does_not_fit_every_time():
    dataset = Counted()
    cached = CachedDataset(dataset, megabytes=1)
    for _ in range(3):
        assert [cached[index].frames["side"][0, 0, 0, 0] for index in range(4)] == [0, 1, 2, 3]
    assert dataset.reads == [1, 1, 3, 3]


def test_everything_else_is_the_data_sets_own():
    cached = CachedDataset(Counted(), megabytes=1)
    assert (len(cached), cached.location(2), cached.summary()) == (4, "window 2", "four windows")
    assert (cached.sizes, cached.weights) == ([4], [1.0])
