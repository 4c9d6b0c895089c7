"""New names of features, and whether folders can be put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from robovlms.data.editing.base import Recordings
from robovlms.data.lerobot.features import SCALARS, feature_key
from robovlms.data.lerobot.format import read_info
from robovlms.errors import UserError
from robovlms.registry import nearest


def new_names(
    roots: Sequence[Path], features: Mapping[str, str], cameras: Mapping[str, str], dropped: Sequence[str]
) -> dict[str, str]:
    """Return new names of features by the old ones; a camera may be given without `observation.images.`.

    Raises:
        FileNotFoundError, UserError: a folder cannot be read; no folder has a feature that is named; two would have one
            name, or a name could not be that of a folder.
    """
    infos = [read_info(root) for root in roots]
    known = {key for info in infos for key in info.features}
    pictures = {key for info in infos for key in info.keys("image", "video", "depth")}
    names = dict(features)
    for old, new in cameras.items():
        key = old if old in pictures else feature_key(old)
        if key not in pictures:
            told = ", ".join(sorted(pictures)) or "none"
            raise UserError(f"rename_cameras has '{old}', which is no camera of {roots[0]}. It has: {told}.")
        names[key] = new if "." in new else feature_key(new)
    _check_known(roots[0], known, rename=names, drop_features=dropped)
    for new in names.values():
        if "/" in new or not new.strip(". ") or new in SCALARS:
            raise UserError(f"'{new}' cannot be the name of a feature: it has a slash, is empty, or is LeRobot's own.")
    for root, info in zip(roots, infos, strict=True):
        called = [names.get(key, key) for key in info.features if key not in dropped]
        if twice := sorted({name for name in called if called.count(name) > 1}):
            raise UserError(f"two features of {root} would be called '{twice[0]}': choose another name.")
    return names


def _check_known(root: Path, known: set[str], **options: Iterable[str]) -> None:
    for option, keys in options.items():
        for key in keys:
            if key in SCALARS:
                raise UserError(f"{option} has '{key}', which every LeRobot folder must have under this name.")
            if key not in known:
                raise UserError(
                    f"{option} has '{key}', which {root} lacks.{nearest(key, known)} It has: "
                    f"{', '.join(sorted(known - set(SCALARS)))}."
                )


def check_same(sources: Sequence[Recordings]) -> None:
    """Refuse folders whose episodes would not mean the same.

    Raises:
        UserError: lists every difference, and what to do.
    """
    first = sources[0]
    told = [f"  {source.where}: {what}" for source in sources[1:] for what in _differences(first, source)]
    if told:
        raise UserError(
            f"merge: these folders are not recorded like {first.where}:\n" + "\n".join(told) + "\nRename what is only "
            "called another name (rename, rename_cameras), leave out what not all of them have (drop_features), or "
            "train on them as sources of data=mixture."
        )


def _differences(first: Recordings, other: Recordings) -> Iterator[str]:
    if first.fps != other.fps:
        yield f"{other.fps} frames a second, not {first.fps}"
    if first.robot_type != other.robot_type:
        yield f"robot_type {other.robot_type}, not {first.robot_type}"
    for key in first.features.keys() | other.features.keys():
        ours, theirs = first.features.get(key), other.features.get(key)
        if ours is None or theirs is None:
            yield f"{'has' if ours is None else 'lacks'} '{key}'"
            continue
        for note in ("dtype", "shape", "names"):
            if _plain(ours.get(note)) != _plain(theirs.get(note)):
                yield f"'{key}' has {note} {theirs.get(note)}, not {ours.get(note)}"


def _plain(value: Any) -> Any:
    return next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else value
