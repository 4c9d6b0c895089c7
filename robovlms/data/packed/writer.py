"""Pack what a reader gives into a folder that is read by memory mapping (`packed.PackedReader`).

    index.json           written last: version, where the data come from, image format, views with their sizes, and
                         bytes and SHA-256 of every other file
    episodes.npy         int64, a row per episode: first row, length, instruction, task, place in sources.txt
    texts.json           instructions and tasks
    sources.txt          what the reader calls each episode, for error messages
    actions.npy          float32 "rows a", as recorded; proprio.npy likewise where there is proprioception
    <view>-00000.bin     rows 0 ... shard_rows - 1 of a view: raw RGB frames, so that a window is one slice, or JPEGs
    <view>-00000.npy     with JPEGs: int64, where each begins, and the end
    unfinished/          while packing: one record per finished shard, with its numbers

A row is a frame. Episodes that overlap in a recording (CALVIN's segments do: 1.5 M frames of them are 0.86 M) share
rows. Shards hold 2^30 bytes of the largest view's raw pixels, or a sixteenth of a small data set, but at least 256
rows; a window that crosses into another shard is copied when it is read.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from robovlms.config.choices import ImageFormat
from robovlms.data.base import Reader
from robovlms.data.packed.index import (
    ACTIONS,
    COLUMNS,
    EPISODES,
    INDEX,
    PROPRIO,
    SOURCES,
    TEXTS,
    VERSION,
    FileRecord,
    PackedIndex,
    again,
    check_files,
    load_index,
    record,
)
from robovlms.data.packed.shards import UNFINISHED, Packer, ShardPlan, Span, encode_jpeg, lay_out, make_plan, numbers_of
from robovlms.errors import UserError
from robovlms.files import digest, exclusive, hash_file
from robovlms.progress import Progress
from robovlms.workers import Pool

logger = logging.getLogger(__name__)

NUM_SAMPLES = 8  # JPEGs that the needed room is estimated from
LOCK = "lock"


@dataclass(frozen=True, kw_only=True)
class PackSummary:
    """What was done."""

    folder: Path
    frames: int
    bytes: int  # of the whole folder
    seconds: float
    num_packed: int  # shards written now; 0: the folder was complete

    def __str__(self) -> str:
        if not self.num_packed:
            return f"{self.folder}: complete already, {self.frames} frames, {self.bytes / 1e6:.1f} MB; nothing done"
        rate = self.bytes / 1e6 / max(self.seconds, 1e-9)
        return (
            f"{self.folder}: {self.frames} frames, {self.bytes / 1e6:.1f} MB, {self.num_packed} shards packed in "
            f"{self.seconds:.1f} s ({rate:.1f} MB/s)"
        )


def pack(
    reader: Reader,
    target: Path,
    *,
    image_format: ImageFormat | str,
    workers: int = 1,
    origin: dict[str, Any] | None = None,
) -> PackSummary:
    """Write the reader's episodes to `target`; a complete folder is left as it is, an unfinished one is continued.

    Args:
        reader: with at least one view. Worker processes get pickled copies, which open their own files.
        target: the folder to write.
        image_format: how frames are stored.
        workers: processes that read and write shards; 1: this one.
        origin: settings that the reader was made with, to be found by.

    Raises:
        UserError: `target` holds other data, a frame is of another size than the first, there is too little room, or
            another process is packing there. Whatever the reader raises.
    """
    start = time.perf_counter()
    image_format = ImageFormat(image_format)
    if (target / INDEX).is_file():
        return _complete(target, reader, image_format, origin or {})
    firsts, spans = lay_out(reader)
    plan = make_plan(reader, spans, image_format, origin or {})
    with _locked(target):
        if (target / INDEX).is_file():  # another process was faster
            return _complete(target, reader, image_format, origin or {})
        done = _finished(target, plan)
        shards = [number for number in range(-(-plan.rows // plan.shard_rows)) if number not in done]
        _check_room(reader, plan, spans, target, len(shards))
        _run(reader, plan, spans, target, shards, workers)
        index = _finish(reader, plan, firsts, target)
    size = sum(entry.bytes for entry in index.files.values())
    seconds = time.perf_counter() - start
    return PackSummary(folder=target, frames=plan.rows, bytes=size, seconds=seconds, num_packed=max(len(shards), 1))


def verify(target: Path) -> int:
    """Compare every file with its recorded SHA-256; give the number of bytes.

    Raises:
        FileNotFoundError: the folder is unfinished, or a file is missing.
        UserError: names the files that differ.
    """
    index = load_index(target)
    check_files(target, index)
    if bad := [name for name, entry in index.files.items() if hash_file(target / name) != entry.sha256]:
        raise UserError(f"{target}: {', '.join(bad)} {'is' if len(bad) == 1 else 'are'} damaged. {again(target)}")
    return sum(entry.bytes for entry in index.files.values())


def _complete(target: Path, reader: Reader, image_format: ImageFormat, origin: dict[str, Any]) -> PackSummary:
    index = load_index(target)
    check_files(target, index)
    wanted = digest(reader.fingerprint()), image_format.value, json.loads(json.dumps(origin))
    if (index.fingerprint, index.image_format, index.origin) != wanted:
        raise UserError(f"{target} holds other data than {reader.summary()}: delete it, or choose another folder.")
    size = sum(entry.bytes for entry in index.files.values())
    return PackSummary(folder=target, frames=index.rows, bytes=size, seconds=0.0, num_packed=0)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Keep other processes from packing into the same folder; the lock goes with the process."""
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(target / UNFINISHED / LOCK, wait=False))
        except BlockingIOError as error:
            raise UserError(f"{target} is being packed by another process: wait for it.") from error
        yield


def _finished(target: Path, plan: ShardPlan) -> set[int]:
    """Return the shards of this plan that lie there whole; what belongs to another plan is deleted."""
    note = target / UNFINISHED / "plan.json"
    text = json.dumps({"version": VERSION, **asdict(plan)}, indent=1)
    if not note.is_file() or note.read_text(encoding="utf-8") != text:
        folder = target / UNFINISHED
        stale = [*target.glob("*-*.bin"), *target.glob("*-*.npy"), *folder.glob("*.npz"), *folder.glob("shard-*.json")]
        for path in [target / PROPRIO, *stale]:
            path.unlink(missing_ok=True)
        note.write_text(text, encoding="utf-8")
        return set()
    records = sorted((target / UNFINISHED).glob("shard-*.json"))
    done = {int(path.stem.removeprefix("shard-")) for path in records if _is_whole(target, path)}
    if done:
        logger.info("%s: %d finished shards are kept", target, len(done))
    return done


def _is_whole(target: Path, note: Path) -> bool:
    files = {name: FileRecord(**entry) for name, entry in json.loads(note.read_text(encoding="utf-8")).items()}
    paths = {name: target / name for name in files}
    has_numbers = numbers_of(target, int(note.stem.removeprefix("shard-"))).is_file()
    return has_numbers and all(p.is_file() and p.stat().st_size == files[name].bytes for name, p in paths.items())


def _check_room(reader: Reader, plan: ShardPlan, spans: list[Span], target: Path, num_shards: int) -> None:
    """Compare what is still to be written with the room on the disk.

    Raises:
        UserError: there is too little; states both.
    """
    frame = float(sum(height * width * 3 for height, width in plan.views.values()))
    if plan.image_format == ImageFormat.jpeg:
        chosen = [spans[i * len(spans) // NUM_SAMPLES] for i in range(NUM_SAMPLES)]
        samples = [reader.frames(span.episode, np.array([span.step + span.length // 2])) for span in chosen]
        sizes = [sum(len(encode_jpeg(images[0])) for images in sample.values()) for sample in samples]
        frame = 1.1 * sum(sizes) / len(sizes)  # the samples may be simpler than the rest
    needed = int(frame * min(plan.rows, num_shards * plan.shard_rows))
    free = shutil.disk_usage(target).free
    if needed > free:
        raise UserError(
            f"packing {reader.summary()} as {plan.image_format} needs {needed / 1e9:.2f} GB ({needed} bytes), but "
            f"{target} has {free / 1e9:.2f} GB ({free} bytes) free: set data.cache_dir to a larger disk"
            + ("." if plan.image_format == ImageFormat.jpeg else ", or pack.image_format=jpeg.")
        )


def _run(reader: Reader, plan: ShardPlan, spans: list[Span], target: Path, shards: list[int], workers: int) -> None:
    start: Any = partial(nullcontext, Packer(reader, plan, spans, target).write)
    pool = Pool[int, None](start, min(workers, len(shards)), "pack.workers")
    total = sum(plan.rows_of(shard) for shard in shards)
    with pool, Progress(f"packing {target}", total, "frame") as progress:
        for shard, _ in pool.run(shards):
            progress.update(plan.rows_of(shard))


def _finish(reader: Reader, plan: ShardPlan, firsts: Int64[np.ndarray, "e"], target: Path) -> PackedIndex:
    """Put the shards' numbers together, write the tables and the index, and clear what is no longer needed."""
    folder = target / UNFINISHED
    shards = range(-(-plan.rows // plan.shard_rows))
    files: dict[str, FileRecord] = {}
    for shard in shards:
        content = json.loads((folder / f"shard-{shard:05d}.json").read_text(encoding="utf-8"))
        files |= {name: FileRecord(**entry) for name, entry in content.items()}
    _write_columns(target, [numbers_of(target, shard) for shard in shards])
    _write_episodes(reader, firsts, target)
    names = [ACTIONS, EPISODES, TEXTS, SOURCES, *([PROPRIO] if (target / PROPRIO).is_file() else [])]
    files |= {name: record(target / name) for name in names}
    index = PackedIndex(version=VERSION, summary=reader.summary(), files=files, **asdict(plan))
    index.save(target)
    shutil.rmtree(folder)
    return index


def _write_columns(target: Path, paths: list[Path]) -> None:
    columns: dict[str, list[Float32[np.ndarray, "n a"]]] = {}
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                columns.setdefault(name, []).append(file[name])
    for name, pieces in columns.items():
        np.save(target / f"{name}.npy", np.concatenate(pieces).astype(np.float32, copy=False))


def _write_episodes(reader: Reader, firsts: Int64[np.ndarray, "e"], target: Path) -> None:
    numbers: dict[str, int] = {}
    table = np.zeros((len(reader.episodes), len(COLUMNS)), np.int64)
    written = 0
    with (target / SOURCES).open("wb") as file:
        for i, episode in enumerate(reader.episodes):
            texts = [numbers.setdefault(text, len(numbers)) for text in (episode.instruction, episode.task)]
            line = reader.location(i, 0, max(episode.length - 1, 0)).encode()
            file.write(line + b"\n")
            table[i] = (firsts[i], episode.length, *texts, written, written + len(line))
            written += len(line) + 1
    np.save(target / EPISODES, table)
    (target / TEXTS).write_text(json.dumps(list(numbers), indent=0), encoding="utf-8")
