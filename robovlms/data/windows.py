"""Windows over a reader's episodes: what every format has in common between disk and loader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from robovlms.actions.conversion import ActionConverter
from robovlms.actions.plan import Source
from robovlms.data.bad_records import BadRecords
from robovlms.data.base import Reader, RobotDataset, WindowIndex, unlabelled
from robovlms.data.splits import evenly_spaced
from robovlms.errors import UserError
from robovlms.progress import track
from robovlms.types import Sample


class Rows(NamedTuple):
    """Numbers of some steps, in the policy's words."""

    actions: Float32[np.ndarray, "r a"]
    proprio: Float32[np.ndarray, "r p"]  # the entries that the policy sees


def find_instructions(datasets: Iterable[WindowDataset]) -> list[str]:
    """Return the instructions of all windows, each once, in their order."""
    found: dict[str, None] = {}
    for dataset in datasets:
        for number, episode in enumerate(dataset.reader.episodes):
            if episode.instruction not in found and len(dataset.windows(number)):
                found[episode.instruction] = None
    return list(found)


class WindowDataset(RobotDataset):
    """Every window of every episode, in the policy's words.

    An episode of T steps holds T - w + 1 windows; actions past its end repeat the last one and are masked. With
    `data.skip_bad` episodes without an instruction have no window, and one that cannot be read is replaced by another
    (`BadRecords.read`).

    Raises:
        UserError: no episode is as long as a window, or the conversion asked for is not possible.
    """

    def __init__(self, reader: Reader, source: Source, *, window_size: int, chunk_size: int) -> None:
        self.reader, self.source, self.config = reader, source, source.config
        self.window_size, self.chunk_size = window_size, chunk_size
        self.converter = ActionConverter(source.config, source.contract)
        self._lengths = np.array([self.converter.num_steps(e.length) for e in reader.episodes], dtype=np.int64)
        if self.config.skip_bad:
            self._lengths[list(unlabelled(reader.episodes))] = 0
        self.num_steps = int(self._lengths.sum())
        self._index = WindowIndex(self._lengths, window_size)
        self._seen = [source.config.proprio_names.index(name) for name in source.proprio_names]
        self._bad = BadRecords(f"windows of {self.config.root}", self.config.skip_bad)
        if not len(self._index) and len(reader.episodes):
            raise UserError(
                f"window.window_size={window_size} is longer than every episode of {reader.summary()}: the longest has "
                f"{max(self._lengths, default=0)} steps. Choose window.window_size <= {max(self._lengths, default=0)}."
            )
        self.sizes, self.weights = [len(self)], [1.0]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Sample:
        return self._bad.read(self._read, index, len(self))

    def _read(self, index: int) -> Sample:
        episode, first = self._index.locate(index)
        steps = np.arange(first, first + self.window_size + self.chunk_size - 1)
        last = self._lengths[episode] - 1
        inside = np.minimum(steps, last)
        real = steps[: last - first + 1]
        observed = self.converter.starts(inside[: self.window_size])
        clip = self.reader.read(episode, observed, self.converter.covered(real))
        actions = self.converter(*clip.numbers, real)
        return Sample(
            frames=clip.frames,
            actions=actions[inside - first],
            action_mask=steps <= last,
            instruction=self.reader.episodes[episode].instruction,
            proprio=None if clip.proprio is None or not self._seen else clip.proprio[:, self._seen],
        )

    def windows(self, episode: int) -> range:
        """Number the windows of an episode; none if it is shorter than one."""
        return self._index.windows(episode)

    def rows(self, max_rows: int) -> Rows:
        """Read the numbers of up to `max_rows` steps, evenly spread; no picture is decoded."""
        starts = np.concatenate([[0], np.cumsum(self._lengths)])
        chosen = evenly_spaced(self.num_steps, min(max_rows, self.num_steps))
        episodes, firsts = np.unique(np.searchsorted(starts, chosen, side="right") - 1, return_index=True)
        steps = np.split(chosen, firsts[1:])
        chosen_steps = track(zip(episodes.tolist(), steps, strict=True), "reading numbers", len(episodes), "episode")
        try:
            pieces = [self._rows(e, rows - starts[e]) for e, rows in chosen_steps]
        except (OSError, UserError) as error:
            self._bad.refuse(error)
            raise
        return Rows(*(np.concatenate(columns) for columns in zip(*pieces, strict=True)))

    def _rows(self, episode: int, steps: Int64[np.ndarray, "n"]) -> Rows:
        numbers = self.reader.numbers(episode, self.converter.covered(steps))
        proprio = numbers.proprio
        if proprio is None:
            return Rows(self.converter(*numbers, steps), np.zeros((len(steps), 0), np.float32))
        widths = self.converter.starts(steps + 1) - self.converter.starts(steps)
        firsts = np.cumsum(widths) - widths
        return Rows(self.converter(*numbers, steps), proprio[firsts][:, self._seen])

    def location(self, index: int) -> str:
        """Name the file and frames of a window."""
        episode, first = self._index.locate(index)
        first, last = self.converter.starts(np.array([first, first + self.window_size - 1])).tolist()
        return self.reader.location(episode, first, last)

    def summary(self) -> str:
        """Describe reader and windows."""
        return f"{self.reader.summary()}, {len(self)} windows of {self.window_size}"
