"""Videos of rollouts: views side by side, the instruction and the verdict below, as mp4 or GIF."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

HEIGHT = 256  # px of every view in a video
FONT_SIZE = 15
LINE = 20  # px per line of text
COLORS = {None: (52, 58, 70), True: (22, 128, 74), False: (185, 40, 40)}  # playing, good, bad


def side_by_side(frames: Mapping[str, UInt8[np.ndarray, "_h _x c"]]) -> UInt8[np.ndarray, "h x c"]:
    """Put the views next to each other, each scaled to the same height."""
    scaled = [
        np.asarray(Image.fromarray(frame).resize((round(frame.shape[1] * HEIGHT / frame.shape[0]), HEIGHT)))
        for frame in frames.values()
    ]
    return np.concatenate(scaled, axis=1)


def annotate(
    frames: Sequence[UInt8[np.ndarray, "h x c"]], text: str, verdict: str, is_good: bool, hold: int
) -> list[UInt8[np.ndarray, "_h x c"]]:
    """Add a bar with `text` below the frames; on the last, held `hold` frames, it shows the verdict in green or red."""
    width = frames[0].shape[1]
    playing, ended = _bar(width, text, "", None), _bar(width, text, verdict, is_good)
    clip = [np.concatenate([frame, playing]) for frame in frames[:-1]]
    return clip + [np.concatenate([frames[-1], ended])] * max(hold, 1)


def write_video(path: Path, frames: Sequence[UInt8[np.ndarray, "h x c"]], fps: float) -> None:
    """Write H.264 (`.mp4`, plays in every browser) or an animated GIF (`.gif`, times rounded to 10 ms).

    Raises:
        ValueError: another suffix, or no frames.
    """
    if not frames:
        raise ValueError(f"no frames to write to {path}.")
    if path.suffix not in (".mp4", ".gif"):
        raise ValueError(f"{path} does not say which video to write: end it in .mp4 or .gif.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        first, *rest = (Image.fromarray(frame).quantize(128) for frame in frames)
        first.save(path, save_all=True, append_images=rest, duration=round(100 / fps) * 10, loop=0)
    else:
        _write_mp4(path, frames, fps)


def _write_mp4(path: Path, frames: Sequence[UInt8[np.ndarray, "h x c"]], fps: float) -> None:
    height, width = (size + size % 2 for size in frames[0].shape[:2])  # 4:2:0 colour needs even sizes
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "26"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1  # the encoder shares the cores with the policy
        for frame in frames:
            padding = ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0))
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.pad(frame, padding, mode="edge"), format="rgb24"))
            )
        container.mux(stream.encode())


def _bar(width: int, text: str, verdict: str, is_good: bool | None) -> UInt8[np.ndarray, "h x c"]:
    """Draw the caption; its height depends on `width` and `text` only, and keeps a line for the verdict."""
    font = ImageFont.load_default(size=FONT_SIZE)
    columns = max(int((width - 16) / font.getlength("n")), 8)
    lines = [*textwrap.wrap(text, columns), verdict]
    image = Image.new("RGB", (width, LINE * len(lines) + 8), COLORS[is_good])
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        draw.text((8, 4 + LINE * i), line, font=font, fill="white")
    return np.asarray(image)
