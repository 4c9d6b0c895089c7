"""Random access to video, ours against opening the file for every request, as LeRobot's PyAV path does.

    python benchmarks/video.py [--root <folder of real data>] [--json FILE]

CPU time of one process and one decoder thread, files in the page cache, median of the repeats, microseconds per frame
of one view. Files: h264 of key frames every second frame, written here as `data/video.py` writes it, and a real AV1
recording. Published figures for LeRobot's way, same kind of files (two views of 200 and 84 px, AV1 with a key frame
every second frame, reopened, converted to float): 1,650 us a frame in windows of 16 and 2,708 alone. Sizes differ
between those and these files, so what is compared is the same clip read both ways, here. Exit status 1 where a clip
read in one pass is not faster than frame by frame, or ours not faster than reopening.
Source of LeRobot's way: lerobot datasets/video_utils.py, decode_video_frames_torchvision: open, seek to the key frame
before the first time, decode to the last, choose the nearest, stack as float32 / 255.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import av
import numpy as np
import torch
from torch import Tensor

from robovlms.data.files.video import open_video, read_frames, write_video

SHARED = Path(os.environ.get("ROBOVLMS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
AV1 = "lerobot_v21_franka_sim_internvla/sim_pick_place/videos/chunk-000/video.ego_view/episode_000003.mp4"
WINDOW, FPS = 16, 30


def reopened(path: Path, times: np.ndarray, tolerance: float) -> Tensor:
    """Read as LeRobot does: a new decoder for every request."""
    frames, stamps = [], []
    with av.open(str(path)) as video:
        stream = video.streams.video[0]
        stream.codec_context.thread_count = 1
        video.seek(round(float(times[0]) / stream.time_base), stream=stream)
        for frame in video.decode(stream):
            frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1))
            stamps.append(frame.time)
            if frame.time >= times[-1] - tolerance:
                break
    distance = np.abs(np.array(stamps)[None] - times[:, None])
    assert (distance.min(axis=1) <= tolerance).all()
    return torch.stack([frames[i] for i in distance.argmin(axis=1)]).float() / 255


def moving_square(count: int, size: int) -> np.ndarray:
    """Return frames with texture and something that moves."""
    generator = np.random.default_rng(0)
    ground = generator.integers(60, 120, (size // 8, size // 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
    frames = np.repeat(ground[None].astype(np.uint8), count, axis=0)
    for i in range(count):
        frames[i, size // 2 : size // 2 + 40, i % (size - 40) : i % (size - 40) + 40] = (200, 60, 30)
    return frames


def measure(path: Path, repeats: int) -> dict[str, float]:
    """Return microseconds per frame of every way to read a file, the ways interleaved."""
    video = open_video(path)
    stream = video.streams.video[0]
    fps, count = float(stream.average_rate), stream.frames
    tolerance = 0.25 / fps
    starts = np.random.default_rng(0).integers(0, count - WINDOW, 8)
    windows = [(start + np.arange(WINDOW)) / fps for start in starts.tolist()]
    singles = [times[:1] for times in windows]
    expected = reopened(path, windows[0], tolerance)
    found = torch.from_numpy(read_frames(video, windows[0], tolerance)).permute(0, 3, 1, 2).float() / 255
    assert (expected - found).abs().max() <= 3 / 255, "both ways must read the same frames"

    ways: dict[str, tuple[Callable[[], object], int]] = {
        "one frame": (lambda: [read_frames(video, t, tolerance) for t in singles], len(singles)),
        "window, one pass": (lambda: [read_frames(video, t, tolerance) for t in windows], len(windows) * WINDOW),
        "window, frame by frame": (
            lambda: [read_frames(video, times[i : i + 1], tolerance) for times in windows for i in range(WINDOW)],
            len(windows) * WINDOW,
        ),
        "one frame, reopened": (lambda: [reopened(path, t, tolerance) for t in singles], len(singles)),
        "window, reopened": (lambda: [reopened(path, t, tolerance) for t in windows], len(windows) * WINDOW),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):  # the first round warms up
        for name, (way, frames) in ways.items():
            start = time.process_time()
            way()
            seconds[name].append((time.process_time() - start) / frames)
    return {name: 1e6 * median(values[1:]) for name, values in seconds.items()}


def describe(path: Path) -> str:
    """Name codec and size."""
    with av.open(str(path)) as video:
        stream = video.streams.video[0]
        return f"{stream.codec_context.name} {stream.width} x {stream.height}, {stream.frames} frames"


def main() -> int:
    """Measure, print the table and give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=SHARED)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        h264 = Path(folder) / "clip.mp4"
        write_video(h264, moving_square(240, 200), FPS)
        paths = {describe(path): path for path in (h264, args.root / AV1) if path.is_file()}
        figures = {name: measure(path, args.repeats) for name, path in paths.items()}
    slow = False
    for name, found in figures.items():
        print(name)
        for way, microseconds in found.items():
            print(f"  {way:26}{microseconds:9.0f} us/frame")
        gains = {
            "one frame": found["one frame, reopened"] / found["one frame"],
            "window": found["window, reopened"] / found["window, one pass"],
            "one pass": found["window, frame by frame"] / found["window, one pass"],
        }
        print(
            "  faster than reopening: {one frame:.1f} x (one frame), {window:.1f} x (window); ".format(**gains), end=""
        )
        print(f"one pass than frame by frame: {gains['one pass']:.1f} x")
        slow = slow or min(gains.values()) < 1
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
