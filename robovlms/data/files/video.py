"""Video files: frames by time out of an mp4, and frames into one."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float64, Int64, UInt8

from robovlms.errors import UserError
from robovlms.files import refuse_pointer

_H264 = {"preset": "veryfast", "crf": "18", "g": "2", "bf": "0", "threads": "1"}
"""Every second frame is a key frame, so a random window decodes at most one frame too many; none is reordered."""


def open_video(path: Path) -> Any:
    """Open an mp4 for `read_frames`.

    One decoder thread: loader processes run side by side, and a forked child could not join its parent's threads.

    Raises:
        UserError: the file has no video that can be decoded, or is a Git LFS pointer.
        OSError: av's own errors, for what is no media file at all.
    """
    try:
        video = av.open(str(path))
    except av.FFmpegError:
        refuse_pointer(path)
        raise
    stream = video.streams.video[0] if video.streams.video else None
    if stream is None or stream.codec_context is None or not stream.time_base:
        raise UserError(f"{path} has no video that can be decoded")
    stream.codec_context.thread_count = 1
    return video


class VideoIndex(NamedTuple):
    """When a file shows its frames, as far as its container says; nothing is decoded."""

    first: float  # seconds: when the first frame is shown
    period: float  # seconds from one frame to the next
    num_frames: int
    uneven: Float64[np.ndarray, "_n"] | None  # seconds of every frame, where no one period fits them
    pixel_format: str  # e.g. "yuv420p"

    @property
    def times(self) -> Float64[np.ndarray, "_n"]:
        """Return when each frame is shown, in seconds, increasing."""
        return self.first + self.period * np.arange(self.num_frames) if self.uneven is None else self.uneven


def index_video(path: Path) -> VideoIndex:
    """Return when an mp4 shows its frames; 0.3 to 3 ms a file, for the index alone is read.

    Raises:
        UserError: it has no video that can be decoded, not a frame, or is a Git LFS pointer; names the file.
    """
    try:
        with open_video(path) as video:
            stream = video.streams.video[0]
            ticks = _ticks(video, stream)
            unit, pixel_format = float(stream.time_base), str(stream.codec_context.pix_fmt)
    except (av.FFmpegError, OSError, UnicodeError) as error:  # av decodes the container's texts
        raise UserError(f"{path} cannot be read as a video ({error})") from error
    if not len(ticks):
        raise UserError(f"{path} has no frame")
    steps = np.diff(ticks)
    period = float(ticks[-1] - ticks[0]) / max(len(ticks) - 1, 1)
    is_even = bool((np.abs(ticks - ticks[0] - period * np.arange(len(ticks))) <= 1).all()) if len(steps) else True
    times = None if is_even else ticks * unit
    return VideoIndex(float(ticks[0]) * unit, period * unit, len(ticks), times, pixel_format)


def _ticks(video: Any, stream: Any) -> Int64[np.ndarray, "_n"]:
    """Return when frames are shown, in units of the stream, increasing.

    An mp4 lists when they are decoded. Frames that are reordered are shown later, all by the same time where the rate
    is constant; elsewhere, and where there is no list, the packets are asked.
    """
    entries = np.array([entry.timestamp for entry in stream.index_entries if not entry.is_discard], dtype=np.int64)
    is_even = len(entries) > 2 and len(np.unique(np.diff(entries))) == 1
    if len(entries) and stream.start_time is not None and (is_even or not stream.codec_context.has_b_frames):
        return entries - entries[0] + stream.start_time
    return np.unique(np.array([packet.pts for packet in video.demux(stream) if packet.pts is not None], dtype=np.int64))


def read_frames(video: Any, times: Float64[np.ndarray, "w"], tolerance: float) -> UInt8[np.ndarray, "w h x c"]:
    """Decode the RGB frames shown at `times`, in one pass from the key frame before the first.

    Args:
        video: from `open_video`.
        times: seconds since the start of the file, increasing.
        tolerance: seconds by which a frame may miss its time; below half a frame period, so never a neighbour.

    Raises:
        UserError: the file shows nothing within `tolerance` of one of the times.
    """
    if not ((times > -tolerance) & (times < 1e6)).all():
        raise UserError(f"times {times[0]} to {times[-1]} s are not those of a recording")
    found: dict[int, np.ndarray] = {}
    for margin in (0.0, 2.0, float(times[0])):  # files with reordered frames may seek too far: start earlier
        found |= _decode(video, times, tolerance, margin)
        if len(found) == len(times):
            return np.stack([found[step] for step in range(len(times))])
    missing = times[[step not in found for step in range(len(times))]]
    raise UserError(f"no frame at {missing[0]:.4f} s (tolerance {tolerance:.4f} s)")


def _decode(
    video: Any, times: Float64[np.ndarray, "w"], tolerance: float, margin: float
) -> dict[int, UInt8[np.ndarray, "h x c"]]:
    """Return the frame nearest to each time, by the time's number, where one is within the tolerance."""
    found: dict[int, UInt8[np.ndarray, "h x c"]] = {}
    nearest = np.full(len(times), np.inf)
    stream = video.streams.video[0]
    start = max(0.0, float(times[0]) - margin)
    to_rgb = VideoReformatter()  # shared by the frames: setting up the conversion costs more than converting
    video.seek(round(start / stream.time_base), stream=stream)
    for frame in video.decode(stream):
        if frame.time is None:
            continue
        off = np.abs(times - frame.time)
        for step in np.flatnonzero((off <= tolerance) & (off < nearest)):
            found[int(step)] = to_rgb.reformat(frame, format="rgb24").to_ndarray()
        nearest = np.minimum(nearest, off)
        if frame.time >= times[-1] - tolerance / 10:  # times are rounded; another frame would cost a tenth of a window
            break
    return found


def write_video(path: Path, frames: Iterable[UInt8[np.ndarray, "h x c"]], fps: int) -> None:
    """Write RGB frames as h264 (yuv420p, so height and width are even); frame i is shown at i / fps seconds."""
    with av.open(str(path), "w") as video:
        stream = video.add_stream("libx264", rate=fps, options=_H264)
        for step, image in enumerate(frames):
            if step == 0:
                stream.height, stream.width, stream.pix_fmt = image.shape[0], image.shape[1], "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = step, Fraction(1, fps)
            video.mux(stream.encode(frame))
        video.mux(stream.encode())
