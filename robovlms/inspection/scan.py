"""Read a data set for inspection: whole episodes, evenly spread, up to a budget of frames; what cannot be read is kept.

Nothing here holds more pictures in memory than a block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from robovlms.data.base import EpisodeInfo, Numbers, Reader
from robovlms.data.splits import evenly_spaced
from robovlms.progress import track

BLOCK_BYTES, MAX_BLOCK = 64_000_000, 512  # of pictures decoded at once
THIN, PLAIN = 4, 8  # every n-th row and column tells whether a picture has one colour, up to this difference
MAX_FAULTS = 20  # that are remembered with their text


class Stretch(NamedTuple):
    """The first `length` recorded frames of an episode."""

    episode: int
    length: int


class FrozenRun(NamedTuple):
    """Consecutive frames of one view that show the same, pixel by pixel."""

    episode: int
    first: int
    length: int  # frames, the first included; 1: nothing is repeated


@dataclass(kw_only=True)
class Faults:
    """What could not be read: how much of it, and the first messages."""

    count: int = 0
    messages: list[str] = field(default_factory=list)

    def add(self, message: str) -> None:
        """Count one, and keep its message if there is room."""
        self.count += 1
        if len(self.messages) < MAX_FAULTS:
            self.messages.append(message)


@dataclass(frozen=True, kw_only=True)
class ScannedRows:
    """Recorded numbers, and where each row comes from."""

    actions: Float32[np.ndarray, "n a"]
    proprio: Float32[np.ndarray, "n p"] | None
    episode: Int64[np.ndarray, "n"]
    step: Int64[np.ndarray, "n"]
    faults: Faults


@dataclass(kw_only=True)
class ViewScan:
    """What the pictures of one view look like."""

    name: str
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (height, width): frames
    size_at: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)  # (episode, step) of its first frame
    frames: int = 0
    pairs: int = 0  # of neighbours that were compared
    repeated: int = 0  # of them identical
    longest: FrozenRun | None = None
    blank: int = 0  # of one colour all over, black for instance, but for the noise of a codec
    first_blank: tuple[int, int] | None = None  # (episode, step)

    def add(self, episode: int, step: int, image: UInt8[np.ndarray, "_h _x c"]) -> None:
        """Count one picture."""
        size = (image.shape[0], image.shape[1])
        self.frames += 1
        self.sizes[size] += 1
        self.size_at.setdefault(size, (episode, step))
        if image.size and bool((np.ptp(image[::THIN, ::THIN], axis=(0, 1)) <= PLAIN).all()):
            self.blank += 1
            self.first_blank = self.first_blank or (episode, step)

    def compare(self, run: FrozenRun, same: bool) -> FrozenRun:
        """Count a pair of neighbours, the second at `run.first + run.length`; return the run that it belongs to."""
        self.pairs += 1
        self.repeated += same
        run = run._replace(length=run.length + 1) if same else FrozenRun(run.episode, run.first + run.length, 1)
        if same and (self.longest is None or run.length > self.longest.length):
            self.longest = run
        return run


def choose_stretches(episodes: Sequence[EpisodeInfo], max_frames: int) -> list[Stretch]:
    """Return what to read: all, or as many whole episodes, evenly spread, as have at most `max_frames` frames together.

    One episode is always among them, cut where it is longer than that.
    """
    lengths = np.array([episode.length for episode in episodes], dtype=np.int64)
    filled = np.flatnonzero(lengths > 0)
    if not len(filled):
        return []
    count = len(filled)
    if lengths.sum() > max_frames:
        count = max(1, int(max_frames / lengths[filled].mean()))
    while count > 1 and lengths[filled[evenly_spaced(len(filled), count)]].sum() > max_frames:
        count = min(count - 1, int(count * 0.95))
    chosen = filled[evenly_spaced(len(filled), max(1, count))].tolist()
    return [Stretch(episode, int(min(lengths[episode], max_frames))) for episode in chosen]


def scan_numbers(reader: Reader, stretches: Sequence[Stretch]) -> ScannedRows:
    """Read actions and proprioception as recorded; rows that cannot be read are left out and counted."""
    faults = Faults()
    pieces: list[tuple[int, Int64[np.ndarray, "n"], Numbers]] = []
    for episode, length in track(stretches, "reading numbers", len(stretches), "episode"):
        steps = np.arange(length)
        try:
            pieces.append((episode, steps, reader.numbers(episode, steps)))
        except (OSError, ValueError):  # one by one, to name the row and keep the others
            for step in steps:
                try:
                    pieces.append((episode, steps[step : step + 1], reader.numbers(episode, steps[step : step + 1])))
                except (OSError, ValueError) as error:
                    faults.add(str(error))
    if not pieces:
        return ScannedRows(actions=np.zeros((0, 0), np.float32), proprio=None, episode=np.zeros(0, np.int64),
                    step=np.zeros(0, np.int64), faults=faults)  # fmt: skip
    proprio = [numbers.proprio for _, _, numbers in pieces if numbers.proprio is not None]
    return ScannedRows(
        actions=np.concatenate([numbers.actions for _, _, numbers in pieces]),
        proprio=np.concatenate(proprio) if proprio else None,
        episode=np.concatenate([np.full(len(steps), episode) for episode, steps, _ in pieces]),
        step=np.concatenate([steps for _, steps, _ in pieces]),
        faults=faults,
    )


def read_pictures(
    reader: Reader, episode: int, steps: Int64[np.ndarray, "n"], faults: Faults
) -> Iterator[tuple[int, dict[str, UInt8[np.ndarray, "_h _x c"]]]]:
    """Return (step, picture by view) of increasing recorded `steps`; what cannot be read is left out and counted."""
    block = 1  # until the size of a picture is known
    while len(steps):
        now, steps = steps[:block], steps[block:]
        try:
            frames = reader.frames(episode, now)
        except (OSError, ValueError) as error:
            if len(now) == 1:
                faults.add(str(error))
            else:
                for step in range(len(now)):
                    yield from read_pictures(reader, episode, now[step : step + 1], faults)
            continue
        size = sum(images[:1].nbytes for images in frames.values())
        block = int(np.clip(BLOCK_BYTES // max(size, 1), 1, MAX_BLOCK))
        for i, step in enumerate(now.tolist()):
            yield step, {view: images[i] for view, images in frames.items()}


def scan_pictures(reader: Reader, stretches: Sequence[Stretch]) -> tuple[dict[str, ViewScan], Faults]:
    """Look at every picture of the stretches, and compare each with the one before."""
    views: dict[str, ViewScan] = {}
    faults = Faults()
    for episode, length in track(stretches, "looking at pictures", len(stretches), "episode"):
        before: dict[str, UInt8[np.ndarray, "_h _x c"]] = {}
        runs: dict[str, FrozenRun] = {}
        last = -1
        for step, images in read_pictures(reader, episode, np.arange(length), faults):
            for view, image in images.items():
                scan = views.setdefault(view, ViewScan(name=view))
                scan.add(episode, step, image)
                if step == last + 1 and view in before:
                    runs[view] = scan.compare(runs[view], np.array_equal(before[view], image))
                else:
                    runs[view] = FrozenRun(episode, step, 1)
            before, last = images, step
    return views, faults
