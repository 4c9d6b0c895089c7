"""Data sets edited, put together, divided or converted into new LeRobot folders; nothing is changed in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from robovlms.data.editing.base import Recordings, Take
from robovlms.data.editing.lerobot_folder import LeRobotFolder
from robovlms.data.editing.reader_recordings import ReaderRecordings
from robovlms.data.editing.renaming import check_same, new_names
from robovlms.data.editing.schema import EditDataConfig
from robovlms.data.editing.takes import choose, divide, read_trim, take_all, trim_idle, trim_to
from robovlms.data.editing.videos import describe
from robovlms.data.lerobot.folder import FolderWriter
from robovlms.data.remote import fetch, local_folder, pin
from robovlms.errors import UserError
from robovlms.files import atomic_folder
from robovlms.progress import track


def edit_data(config: EditDataConfig) -> list[str]:
    """Write the new folder, or all folders of a division, complete or not at all; return a line about each.

    Raises:
        FileExistsError: `output_dir` exists.
        FileNotFoundError: a folder or a file of it is missing.
        UserError: an option names what there is not, folders cannot be put together, or nothing is left.
    """
    target = Path(config.output_dir).expanduser()
    if target.exists():
        raise FileExistsError(f"output_dir={target} exists: choose another, or delete it. Nothing is edited in place.")
    sources = _open(config)
    where = " and ".join(source.where for source in sources)
    everything = take_all(sources)
    takes = choose(everything, config.keep, config.drop, where)
    spans = read_trim(config.trim)
    if config.trim_idle:
        spared = set(spans)
        takes = trim_idle(takes, sources, threshold=config.idle_threshold, keep=config.idle_keep, spared=spared)
    divided = divide(trim_to(takes, spans), config.split, [take.number for take in everything], where)
    for place, source in enumerate(sources):
        source.prepare([take for take in takes if take.source == place])
    if not config.split:
        return [_write(target, sources, divided[""], config)]
    with atomic_folder(target) as unfinished:
        lines = [_write(unfinished / name, sources, members, config) for name, members in divided.items()]
    return [line.replace(str(unfinished), str(target)) for line in lines]


def _open(config: EditDataConfig) -> Sequence[Recordings]:
    if config.data is not None:
        data = pin(config.data)
        return [
            ReaderRecordings(
                fetch(data, list(data.views)),
                robot_type=config.robot_type or config.data.name,
                instruction=config.set_instruction,
                is_video=config.video,
            )
        ]
    assert config.root is not None
    roots = [local_folder(config.root, "root"), *(local_folder(root, "merge") for root in config.merge)]
    names = new_names(roots, config.rename, config.rename_cameras, config.drop_features)
    folders = [
        LeRobotFolder(
            root,
            names=names,
            dropped=config.drop_features,
            said=config.rename_instructions,
            instruction=config.set_instruction,
            idle_key=config.idle_key,
        )
        for root in roots
    ]
    if unknown := set(config.rename_instructions) - {text for folder in folders for text in folder.tasks.values()}:
        raise UserError(f"rename_instructions has {sorted(unknown)[0]!r}, which no task of {roots[0]} says.")
    check_same(folders)
    return folders


def _write(root: Path, sources: Sequence[Recordings], takes: Sequence[Take], config: EditDataConfig) -> str:
    """Write one folder, and say what is in it."""
    first = sources[0]
    robot_type = config.robot_type or first.robot_type
    counts: Counter[tuple[str, str]] = Counter()
    with FolderWriter(root, fps=first.fps, robot_type=robot_type, features=dict(first.features)) as writer:
        parts = [source.into(writer, [t for t in takes if t.source == i]) for i, source in enumerate(sources)]
        for take in track(takes, f"writing {root.name}", len(takes), "episode"):
            parts[take.source].write(take)
        for part in parts:
            counts += part.counts
        told = describe(writer.features, counts)
    frames = sum(take.length for take in takes)
    return f"{root}: {len(takes)} episodes, {frames} frames{told and '; '}{told}"
