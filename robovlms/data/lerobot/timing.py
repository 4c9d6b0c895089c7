"""Which frame of a video belongs to which row: timestamps, frame rate and the containers, held against one another.

A LeRobotDataset finds a row's picture by its timestamp. Timestamps that a robot's clock wrote, that are in another unit
or all zero find another picture or none, hours into a run; so they are compared with the containers' indices when the
folder is opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from robovlms.data.files.video import VideoIndex
from robovlms.errors import UserError

SHARE = 0.25  # of a frame's period: how far a picture may be from its time, well below the half that is a neighbour's
RATE_SHARE = 0.1  # by which the rate of the timestamps may differ from fps without a word
_DEEP = ("gray9", "gray10", "gray12", "gray14", "gray16", "grayf", "ya16", "depth")  # pixel formats of depth maps


class ClockError(UserError):
    """Timestamps that are not frame_index / fps, by `off` seconds at most."""

    def __init__(self, message: str, off: float) -> None:
        super().__init__(message)
        self.off = off


class VideoPlace(NamedTuple):
    """Where the frames of an episode are in a video."""

    path: Path
    start: float  # seconds: when its first frame is shown
    by_number: bool = False  # frame i is shown at start + i / fps; else timestamps say how much later than the first

    def times(
        self, stamps: Float64[np.ndarray, "n"], steps: Int64[np.ndarray, "w"], fps: float
    ) -> Float64[np.ndarray, "w"]:
        """Return when the rows `steps` of an episode with these timestamps are shown, in seconds."""
        return self.start + (steps / fps if self.by_number else stamps[steps] - stamps[0])


def place_video(
    place: VideoPlace,
    stamps: Float64[np.ndarray, "n"],
    shown: VideoIndex,
    *,
    fps: float,
    tolerance: float,
    is_alone: bool,
) -> VideoPlace:
    """Return where an episode's frames are in a file, found by timestamps or, within the tolerance, by number.

    Args:
        place: as meta/ says it.
        stamps: the episode's column `timestamp`, in seconds.
        shown: the file's index.
        fps: frames a second, of meta/info.json.
        tolerance: seconds by which a timestamp may differ from frame_index / fps when frames are found by number.
        is_alone: the file holds this episode alone (v2.x), so that its own first frame counts where times do not fit.

    Raises:
        UserError: no frame, or the same one twice, is where a row's picture must be. Says what is recorded.
    """
    if shown.pixel_format.startswith(_DEEP):
        raise UserError(f"its pixels are {shown.pixel_format}, those of a depth map: choose a colour camera")
    if not len(stamps):
        return place
    if not np.isfinite(stamps).all():
        raise UserError(f"the timestamp of its frame {int(np.argmin(np.isfinite(stamps)))} is not finite")
    steps, times = np.arange(len(stamps)), shown.times
    starts = [place.start]
    if is_alone:  # lerobot's own meaning first: timestamps are times of the file
        starts = list(dict.fromkeys([float(stamps[0]), place.start, shown.first]))
    off = np.abs(stamps - stamps[0] - steps / fps)
    guesses = [place._replace(start=start) for start in starts]
    if off.max() <= tolerance:
        guesses += [guess._replace(by_number=True) for guess in reversed(guesses)]
    for guess in guesses:
        if _fits(guess.times(stamps, steps, fps), times, SHARE / fps):
            return guess
    if off.max() > max(tolerance, SHARE / fps):
        raise ClockError(_clock_problem(stamps, float(off.max()), shown, fps, is_alone), float(off.max()))
    raise UserError(_video_problem(len(stamps), shown, fps))


def _fits(wanted: Float64[np.ndarray, "n"], shown: Float64[np.ndarray, "m"], tolerance: float) -> bool:
    """Tell whether every time has a frame of its own."""
    if not np.isfinite(wanted).all():
        return False
    after = np.searchsorted(shown, wanted).clip(1, max(len(shown) - 1, 1))
    left, right = shown[after - 1], shown[np.minimum(after, len(shown) - 1)]
    nearest = np.where(np.abs(left - wanted) <= np.abs(right - wanted), after - 1, after).clip(0, len(shown) - 1)
    is_own = len(nearest) < 2 or bool((np.diff(nearest) > 0).all())
    return is_own and bool((np.abs(shown[nearest] - wanted) <= tolerance).all())


def _clock_problem(stamps: Float64[np.ndarray, "n"], off: float, shown: VideoIndex, fps: float, is_alone: bool) -> str:
    told = f"the timestamps of its {len(stamps)} rows are up to {off:.4g} s off frame_index / fps{_unit(stamps, fps)}"
    if is_alone and shown.num_frames != len(stamps):
        told += f", and the video holds {shown.num_frames} frames"
    return f"{told} (fps={fps:g} in meta/info.json)"


def _video_problem(rows: int, shown: VideoIndex, fps: float) -> str:
    times = shown.times
    rate = f" ({1 / shown.period:.4g} a second)" if shown.period else ""
    return (
        f"its {rows} rows at fps={fps:g} (meta/info.json) do not find their pictures: the video holds "
        f"{shown.num_frames} frames{rate}, shown from {times[0]:.4g} to {times[-1]:.4g} s. Write it again with "
        "a frame for every row"
    )


def _unit(stamps: Float64[np.ndarray, "n"], fps: float) -> str:
    """Guess what timestamps are that are not seconds since the episode began."""
    span, expected = float(stamps[-1] - stamps[0]), (len(stamps) - 1) / fps
    if span == 0:
        since_1970 = " (since 1970, which float32 keeps only to the minute)" if stamps[0] > 1e9 else ""
        return f": all are {stamps[0]:g}{since_1970}"
    if stamps[0] > 1e9 and len(np.unique(stamps)) < len(stamps):
        return ": they count from 1970, which float32 keeps only to the minute"
    for unit, factor in {"milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}.items():
        if expected and 0.8 < span / expected / factor < 1.25:
            return f": they look like {unit}"
    if (np.diff(stamps) < 0).any():
        return ": they go back"
    return ""


def clock_note(episodes: Iterable[Float64[np.ndarray, "_t"]], fps: float) -> str | None:
    """Return what to say of timestamps that tell another rate than `fps`; None where they do not, or tell none.

    Args:
        episodes: timestamps of each, in seconds.
        fps: frames a second, as the folder says; pictures and actions are taken to have this rate.
    """
    spans = [(float(stamps[-1] - stamps[0]), len(stamps) - 1) for stamps in episodes if len(stamps) > 1]
    seconds, steps = sum(span for span, _ in spans), sum(count for _, count in spans)
    if not seconds > 0 or abs(seconds / steps * fps - 1) <= RATE_SHARE:
        return None
    return (
        f"the timestamps are {seconds / steps:.4g} s apart ({steps / seconds:.4g} rows a second), but meta/info.json "
        f"says fps={fps:g}, which counts. If they are right, correct fps and data.contract.control_hz"
    )


def shared_frames(spans: Iterable[tuple[int, str, VideoPlace, float]]) -> dict[int, Exception]:
    """Return what to say of episodes that show frames of another episode, by their numbers.

    Args:
        spans: an episode's number, a feature key, where its frames are, and the time of its last one, in seconds.
    """
    ordered = sorted(spans, key=lambda row: (str(row[2].path), row[2].start, row[0]))
    found: dict[int, Exception] = {}
    for (before, key, place, last), (after, _, other, _) in pairwise(ordered):
        if place.path == other.path and other.start <= last:
            what = (
                f"{place.path}: episodes {before} and {after} show the same frames of '{key}', from {other.start:.4g} "
                "s on: their from_timestamp in meta/episodes is wrong"
            )
            found.setdefault(before, UserError(what))
            found.setdefault(after, UserError(what))
    return found
