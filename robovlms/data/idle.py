"""Steps in which the arm waits: which they are, and a reader that leaves them out as if they were never recorded."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from robovlms.actions.contract import split_name
from robovlms.config.choices import Representation
from robovlms.config.data import ActionContract, DataConfig
from robovlms.data.base import Clip, EpisodeInfo, Numbers, Reader
from robovlms.data.files.cache_folder import cache_folder, keep
from robovlms.errors import UserError
from robovlms.files import digest
from robovlms.progress import track

log = logging.getLogger(__name__)
STILL = ("qw", "r1", "r5")  # entries that are 1 in a turn by nothing
VERSION = 1  # of what counts as idle; raise it when that changes


def step_sizes(
    actions: Float32[np.ndarray, "s a"], episode: Int64[np.ndarray, "s"], contract: ActionContract
) -> Float32[np.ndarray, "s"]:
    """Return the arm's largest entry in every step, as recorded: of a delta its size, of an absolute entry its change
    from the step before. Infinite in an episode's first step of absolute entries; grippers do not count.
    """
    columns = [i for i in range(actions.shape[1]) if i not in contract.grippers]
    arm = actions[:, columns]
    if contract.representation is Representation.absolute:
        changes = np.full_like(arm, np.inf)
        changes[1:][episode[1:] == episode[:-1]] = np.diff(arm, axis=0)[episode[1:] == episode[:-1]]
        arm = changes
    elif still := {split_name(contract.names[i])[1] for i in columns} & {*STILL}:
        arm = arm - np.array([split_name(contract.names[i])[1] in still for i in columns], np.float32)
    return np.asarray(np.abs(arm).max(axis=1))


def dwells(idle: Bool[np.ndarray, "s"], episode: Int64[np.ndarray, "s"]) -> Int64[np.ndarray, "s"]:
    """Return of every step how many idle ones there have been in a row, itself included; 0: it is not idle."""
    number = np.arange(len(idle))
    starts = np.flatnonzero(np.diff(episode, prepend=episode[:1] - 1))
    first = np.repeat(starts, np.diff([*starts, len(idle)]))  # of the step's episode
    moved = np.maximum.accumulate(np.where(idle, -1, number))
    return np.where(idle, number - np.maximum(moved, first - 1), 0)


def kept_steps(
    actions: Float32[np.ndarray, "s a"], episode: Int64[np.ndarray, "s"], data: DataConfig
) -> Bool[np.ndarray, "s"]:
    """Say which steps remain with `data.skip_idle`: all in which the arm moves, and the first ones of every dwell.

    Args:
        actions: as recorded.
        episode: of each row; those of one stand together.
        data: whose `idle` says what counts.
    """
    idle = step_sizes(actions, episode, data.contract) <= np.float32(data.idle.threshold)
    return dwells(idle, episode) <= round(data.idle.keep_s * data.contract.control_hz)


class IdleSkippingReader(Reader):
    """Another reader's episodes without the steps in which the arm waits: the next step follows at once.

    The actions of all episodes are read once, and which steps remain is kept in the cache folder. Episodes of which
    nothing remains are left out, with a warning. An episode whose actions cannot be read stays whole: reading its
    frames says what is wrong with it.

    Raises:
        UserError: nothing remains.
    """

    skips_idle = True

    def __init__(self, reader: Reader, data: DataConfig) -> None:
        self._reader, self._idle, self.fps = reader, data.idle, reader.fps
        told = json.dumps([VERSION, reader.fingerprint(), asdict(data.idle), asdict(data.contract)], default=str)
        path = cache_folder(data.cache_dir) / f"idle-{data.name}-{digest(told)[:24]}.npz"
        lengths = [episode.length for episode in reader.episodes]
        kept, _ = keep(path, lambda: self._look(data), lambda kept: {"kept": kept}, lambda a: _checked(a, sum(lengths)))
        pieces = [np.flatnonzero(piece) for piece in np.split(kept, np.cumsum(lengths)[:-1])] if lengths else []
        self._numbers = [i for i, piece in enumerate(pieces) if len(piece) or not lengths[i]]
        self._steps = [pieces[i] for i in self._numbers]
        found = [reader.episodes[i] for i in self._numbers]
        self.episodes = [
            EpisodeInfo(len(steps), told.instruction, told.task) for steps, told in zip(self._steps, found, strict=True)
        ]
        if len(found) < len(lengths):
            empty, whole = len(lengths) - len(found), reader.summary()
            log.warning(
                "%s: %d of %d episodes that data.skip_idle leaves nothing of left out", whole, empty, len(lengths)
            )
        if lengths and not found:
            raise UserError(
                f"data.skip_idle=true leaves nothing of {reader.summary()}: no step has an entry of the arm beyond "
                f"data.idle.threshold={data.idle.threshold:g}. Lower it."
            )

    def _look(self, data: DataConfig) -> Bool[np.ndarray, "s"]:
        episodes = list(enumerate(self._reader.episodes))
        pieces = []
        for number, told in track(episodes, "looking for idle steps", len(episodes), "episode"):
            steps = np.arange(told.length)
            try:
                actions = self._reader.numbers(number, steps).actions
            except (OSError, ValueError):
                pieces.append(np.ones(told.length, bool))
                continue
            pieces.append(kept_steps(actions, np.zeros(len(steps), np.int64), data))
        return np.concatenate([*pieces, np.zeros(0, bool)])

    def frames(self, episode: int, steps: Int64[np.ndarray, "w"]) -> dict[str, UInt8[np.ndarray, "w _h _x c"]]:
        """Decode the frames that the remaining steps stand for."""
        return self._reader.frames(self._numbers[episode], self._steps[episode][steps])

    def numbers(self, episode: int, steps: Int64[np.ndarray, "n"]) -> Numbers:
        """Read the rows that the remaining steps stand for."""
        return self._reader.numbers(self._numbers[episode], self._steps[episode][steps])

    def read(self, episode: int, observed: Int64[np.ndarray, "w"], acted: Int64[np.ndarray, "n"]) -> Clip:
        """Read the frames and rows that the remaining steps stand for, as the other reader does at once."""
        steps = self._steps[episode]
        return self._reader.read(self._numbers[episode], steps[observed], steps[acted])

    def number(self, episode: int) -> int:
        """Return the folder's own number of an episode."""
        return self._reader.number(self._numbers[episode])

    def location(self, episode: int, first: int, last: int) -> str:
        """Name the file and these frames of it, as they were recorded."""
        steps = self._steps[episode]
        first, last = (int(steps[step]) if step < len(steps) else step for step in (first, last))
        return self._reader.location(self._numbers[episode], first, last)

    def summary(self) -> str:
        """Describe the split, and what remains of it."""
        return f"{self._reader.summary()}; without idle steps {self.counts()}"

    def fingerprint(self) -> str:
        """Return the other reader's text, and what is left out."""
        return f"{self._reader.fingerprint()} without idle {VERSION} {self._idle}"


def _checked(arrays: dict[str, np.ndarray], length: int) -> Bool[np.ndarray, "s"]:
    kept = arrays["kept"]
    if kept.shape != (length,) or kept.dtype != np.bool_:
        raise UserError(f"{kept.dtype} {kept.shape} are not {length} steps")
    return kept


def find_dwells(idle: Bool[np.ndarray, "s"], episode: Int64[np.ndarray, "s"]) -> Iterator[tuple[int, int]]:
    """Return the (first, last) row of every dwell."""
    run = dwells(idle, episode)
    ends = np.flatnonzero((run > 0) & (np.append(run[1:], 0) != run + 1))
    for end in ends.tolist():
        yield end - int(run[end]) + 1, end
