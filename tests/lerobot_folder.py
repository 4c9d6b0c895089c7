"""LeRobotDataset v2.1 and v3.0 folders of any content, sound or not: the tests' own writer, which checks nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CAMERA = "observation.images.side"
FPS = 10
NAMES = ["dx", "dy", "gripper"]
LEVEL = 12  # frame i of an episode is gray LEVEL * i


def gray(step: int) -> np.ndarray:
    return np.full((32, 32, 3), LEVEL * (step % 20), np.uint8)


def shown(frames: np.ndarray) -> list[int]:
    """Return the numbers of gray frames, as they were decoded."""
    return np.rint(frames.mean(axis=(1, 2, 3)) / LEVEL).astype(int).tolist()


def encode(picture: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind)
    return buffer.getvalue()


def write_mp4(path: Path, count: int, *, fps: int = FPS, times: Sequence[float] | None = None, bf: int = 0, **options):
    """Write gray frames 0 ... count - 1, shown at `times` or i / fps seconds."""
    codec, pixels = options.get("codec", "libx264"), options.get("pix_fmt", "yuv420p")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as video:
        stream = video.add_stream(codec, rate=fps, options={"bf": str(bf), "g": "4", "crf": "10"} if bf >= 0 else {})
        stream.height, stream.width, stream.pix_fmt = 32, 32, pixels
        stream.codec_context.time_base = Fraction(1, 1000)
        for step in range(count):
            frame = av.VideoFrame.from_ndarray(gray(step), format="rgb24")
            seconds = step / fps if times is None else times[step]
            frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
            video.mux(stream.encode(frame))
        video.mux(stream.encode())


def rows(episode: int, first: int, stamps: Sequence[float], tasks: Sequence[int], cells: Sequence | None, **columns):
    count = len(stamps)
    actions = [[float(episode), float(step), 1.0 if step < count // 2 else -1.0] for step in range(count)]
    table = {
        "action": pa.array(actions, pa.list_(pa.float32(), 3)),
        "timestamp": pa.array(np.asarray(stamps), columns.pop("stamp_type", pa.float32())),
        "frame_index": pa.array(range(count), pa.int64()),
        "episode_index": pa.array([episode] * count, pa.int64()),
        "index": pa.array(range(first, first + count), pa.int64()),
        "task_index": pa.array(list(tasks), pa.int64()),
    }
    if cells is not None:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table[CAMERA] = pa.array([c if isinstance(c, dict) else {"bytes": c, "path": None} for c in cells], kind)
    return pa.table(table | columns)


def write_info(root: Path, *, video: bool, episodes: int, frames: int, tasks: Sequence[str], **changes) -> None:
    features = {CAMERA: {"dtype": "video" if video else "image", "shape": [32, 32, 3], "names": None}}
    features |= {"action": {"dtype": "float32", "shape": [3], "names": NAMES}}
    features |= {"timestamp": {"dtype": "float32", "shape": [1], "names": None}}
    numbers = ("frame_index", "episode_index", "index", "task_index")
    features |= {key: {"dtype": "int64", "shape": [1], "names": None} for key in numbers}
    is_v2 = changes.get("codebase_version", "v2.1").startswith("v2")
    place = "episode_chunk:03d}/episode_{episode_index:06d}" if is_v2 else "chunk_index:03d}/file-{file_index:03d}"
    video_path = "videos/chunk-{" + place if is_v2 else "videos/{video_key}/chunk-{" + place
    info = {
        "codebase_version": "v2.1", "fps": FPS, "total_episodes": episodes, "total_frames": frames,
        "total_tasks": len(tasks), "chunks_size": 1000, "data_path": "data/chunk-{" + place + ".parquet",
        "video_path": video_path.replace("}/episode", "}/{video_key}/episode") + ".mp4", "features": features,
    }  # fmt: skip
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta/info.json").write_text(json.dumps(info | changes))


def write_v2(
    root: Path,
    *,
    lengths: Sequence[int] = (8, 8, 8),
    stamps: Sequence[Sequence[float]] | None = None,
    tasks: Sequence[str] = ("push",),
    task_of: Sequence[Sequence[int]] | None = None,
    cells: Sequence[Sequence] | None = None,
    videos: Sequence[int | None] | None = None,
    mp4: dict | None = None,
    columns: dict | None = None,
    **info,
) -> Path:
    """Write v2.1: embedded pictures, or with `videos` mp4 files of that many frames (None: no file)."""
    start = 0
    (root / "data/chunk-000").mkdir(parents=True)
    for episode, length in enumerate(lengths):
        times = np.arange(length) / FPS if stamps is None else stamps[episode]
        numbers = [0] * length if task_of is None else task_of[episode]
        pictures = None
        if videos is None:
            pictures = [encode(gray(i)) for i in range(length)] if cells is None else cells[episode]
        elif videos[episode] is not None:
            path = root / f"videos/chunk-000/{CAMERA}/episode_{episode:06d}.mp4"
            write_mp4(path, videos[episode], **(mp4 or {}))
        table = rows(episode, start, times, numbers, pictures, **(columns or {}))
        pq.write_table(table, root / f"data/chunk-000/episode_{episode:06d}.parquet")
        start += length
    write_info(root, video=videos is not None, episodes=len(lengths), frames=start, tasks=tasks, **info)
    lines = [{"task_index": i, "task": task} for i, task in enumerate(tasks)]
    (root / "meta/tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"episode_index": i, "length": length} for i, length in enumerate(lengths)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def write_v3(
    root: Path,
    *,
    lengths: Sequence[int] = (8, 8, 8),
    files: Sequence[int] = (0, 0, 0),
    listed: Sequence[int] | None = None,
    starts: Sequence[float] | None = None,
    video: bool = False,
    cells: Sequence[Sequence] | None = None,
) -> Path:
    """Write v3.0: the rows of episode i are in file `files[i]`, and meta/episodes lists `listed[i]`.

    Videos lie in one file, episode i from `starts[i]` seconds on.
    """
    tables: dict[int, list[pa.Table]] = {}
    listing = []
    first = 0
    for episode, length in enumerate(lengths):
        pictures = None if video else (cells[episode] if cells else [encode(gray(i)) for i in range(length)])
        table = rows(episode, first, np.arange(length) / FPS, [0] * length, pictures)
        tables.setdefault(files[episode], []).append(table)
        row = {"episode_index": episode, "length": length, "dataset_from_index": first, "data/chunk_index": 0}
        row |= {"data/file_index": (listed or files)[episode]}
        if video:
            row |= {f"videos/{CAMERA}/chunk_index": 0, f"videos/{CAMERA}/file_index": 0}
            row |= {f"videos/{CAMERA}/from_timestamp": first / FPS if starts is None else starts[episode]}
        listing.append(row)
        first += length
    for number, parts in tables.items():
        path = root / f"data/chunk-000/file-{number:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(parts), path)
    if video:
        write_mp4(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", first)
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(listing), root / "meta/episodes/chunk-000/file-000.parquet")
    tasks = pa.table({"task_index": pa.array([0], pa.int64()), "__index_level_0__": ["push"]})
    pq.write_table(tasks, root / "meta/tasks.parquet")
    write_info(root, video=video, episodes=len(lengths), frames=first, tasks=["push"], codebase_version="v3.0")
    return root
