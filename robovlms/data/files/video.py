"""Video files: frames by time out of an mp4, and frames into one."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float64, UInt8

from robovlms.errors import UserError

_H264 = {"preset": "veryfast", "crf": "18", "g": "2", "bf": "0", "threads": "1"}
"""Every second frame is a key frame, so a random window decodes at most one frame too many; none is reordered."""


def open_video(path: Path) -> Any:
    """Open an mp4 for `read_frames`.

    One decoder thread: loader processes run side by side, and a forked child could not join its parent's threads.

    Raises:
        UserError: the file has no video that can be decoded.
        OSError: av's own errors, for what is no media file at all.
    """
    video = av.open(str(path))
    stream = video.streams.video[0] if video.streams.video else None
    if stream is None or stream.codec_context is None or not stream.time_base:
        raise UserError(f"{path} has no video that can be decoded")
    stream.codec_context.thread_count = 1
    return video


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
        _decode(video, times, tolerance, margin, found)
        if len(found) == len(times):
            return np.stack([found[step] for step in range(len(times))])
    missing = times[[step not in found for step in range(len(times))]]
    raise UserError(f"no frame at {missing[0]:.4f} s (tolerance {tolerance:.4f} s)")


def _decode(
    video: Any, times: Float64[np.ndarray, "w"], tolerance: float, margin: float, found: dict[int, np.ndarray]
) -> None:
    stream = video.streams.video[0]
    start = max(0.0, float(times[0]) - margin)
    to_rgb = VideoReformatter()  # shared by the frames: setting up the conversion costs more than converting
    video.seek(round(start / stream.time_base), stream=stream)
    for frame in video.decode(stream):
        if frame.time is None:
            continue
        for step in np.flatnonzero(np.abs(times - frame.time) <= tolerance):
            found[int(step)] = to_rgb.reformat(frame, format="rgb24").to_ndarray()
        if frame.time >= times[-1] - tolerance:
            return


def write_video(path: Path, frames: UInt8[np.ndarray, "t h x c"], fps: int) -> None:
    """Write RGB frames as h264 (yuv420p, so height and width are even); frame i is shown at i / fps seconds."""
    with av.open(str(path), "w") as video:
        stream = video.add_stream("libx264", rate=fps, options=_H264)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for step, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = step, Fraction(1, fps)
            video.mux(stream.encode(frame))
        video.mux(stream.encode())
