"""Which frames become episodes of a new folder: what is dropped, trimmed at the ends, and how the rest is divided."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from robovlms.data.editing.base import Recordings, Take
from robovlms.data.selection import EpisodeSelection, in_short
from robovlms.data.splits import choose_episodes
from robovlms.errors import UserError


def take_all(sources: Sequence[Recordings]) -> list[Take]:
    """Return every recording of every folder, whole; the numbers of a folder go on where those before it end."""
    takes: list[Take] = []
    for place, source in enumerate(sources):
        start = takes[-1].number + 1 if takes else 0
        takes += [
            Take(
                source=place,
                recording=i,
                number=start + recording.number,
                first=0,
                length=recording.length,
                instruction=recording.instruction,
            )
            for i, recording in enumerate(source.listed)
        ]
    return takes


def choose(takes: list[Take], keep: str | None, drop: str | None, where: str) -> list[Take]:
    """Return the takes that `keep` names and `drop` does not.

    Raises:
        UserError: a number that there is not, or nothing is left; an episode without a frame is kept.
    """
    for selection in (EpisodeSelection.parse(keep, "keep"), EpisodeSelection.parse(drop, "drop", is_drop=True)):
        takes = [takes[i] for i in selection.choose([take.number for take in takes], where)]
    if empty := [take.number for take in takes if not take.length]:
        raise UserError(
            f"{where}: episodes {in_short(empty)} have no frame: leave them out with drop={in_short(empty)}."
        )
    return takes


def read_trim(text: str | None) -> dict[int, str]:
    """Return the frames that `trim` keeps of episodes, e.g. "12-87", by the episode's number.

    Raises:
        UserError: it is not of this form.
    """
    found: dict[int, str] = {}
    for part in (text or "").strip("[] ").split(",") if text is not None else []:
        match = re.fullmatch(r"\s*(\d{1,9})\s*:\s*(\d{1,9}-\d{0,9})\s*", part)
        if match is None:
            raise UserError(
                f"trim={text}: write an episode's number and the frames that are kept, e.g. 3:12-87,5:0-40."
            )
        found[int(match[1])] = match[2]
    return found


def trim_to(takes: list[Take], spans: Mapping[int, str]) -> list[Take]:
    """Return the takes with those that `spans` names cut to the frames that it gives.

    Raises:
        UserError: there is no such episode or frame.
    """
    by_number = {take.number: take for take in takes}
    for number, text in spans.items():
        if number not in by_number:
            raise UserError(f"trim has {number}, which is none of the episodes that are kept: {in_short(by_number)}.")
        take, (start, _, end) = by_number[number], text.partition("-")
        first, last = int(start), int(end or take.length - 1)
        if not first <= last < take.length:
            raise UserError(
                f"trim={number}:{text} must be the first and the last frame that are kept, e.g. 0-{take.length - 1}: "
                f"the episode has {take.length} frames."
            )
        by_number[number] = replace(take, first=first, length=last - first + 1)
    return list(by_number.values())


def trim_idle(
    takes: list[Take], sources: Sequence[Recordings], *, threshold: float, keep: int, spared: set[int]
) -> list[Take]:
    """Return the takes without the frames at both ends in which the robot waits.

    Args:
        takes: whole ones.
        sources: the folders they are of.
        threshold: of an entry's range in its folder, by which it may be off where it begins, or ends, and still waits.
        keep: idle frames that stay at each end.
        spared: numbers of episodes that stay as they are.

    Raises:
        UserError: an episode does nothing but wait.
    """
    found: list[Take] = []
    still: list[int] = []
    for place, source in enumerate(sources):
        members = [take for take in takes if take.source == place]
        tracks = [source.positions(take.recording) for take in members]
        if not tracks:
            continue
        room = threshold * (np.max([t.max(0) for t in tracks], axis=0) - np.min([t.min(0) for t in tracks], axis=0))
        for take, track in zip(members, tracks, strict=True):
            moving = _moving(track, room)
            if take.number in spared:
                found.append(take)
            elif moving is None:
                still.append(take.number)
            else:
                first, last = max(moving[0] - keep, 0), min(moving[1] + keep, take.length - 1)
                found.append(replace(take, first=first, length=last - first + 1))
    if still:
        raise UserError(
            f"trim_idle=true leaves nothing of the episodes {in_short(still)}, in which no entry moves by more than "
            f"idle_threshold={threshold:g} of its range: leave them out with drop={in_short(still)}, or lower it."
        )
    return found


def _moving(track: Float64[np.ndarray, "t d"], room: Float64[np.ndarray, "d"]) -> tuple[int, int] | None:
    """Return the last frame before the track leaves where it begins, and the first at which it is where it ends."""
    left = np.flatnonzero((np.abs(track - track[0]) > room).any(axis=1))
    back = np.flatnonzero((np.abs(track - track[-1]) > room).any(axis=1))
    if not len(left) or not len(back):
        return None
    return int(min(left[0] - 1, back[-1])), int(max(left[0], back[-1] + 1))


def divide(takes: list[Take], split: Mapping[str, str], known: list[int], where: str) -> dict[str, list[Take]]:
    """Return the takes of every new folder by its name; "" where nothing is divided.

    Shares (two, together 1) are of every task's episodes, the second folder's the last of them; anything else is a
    choice among the numbers that are `known`, dropped ones among them.

    Raises:
        UserError: what `split` says is no division: folders share an episode, or one is in none.
    """
    if not split:
        return {"": takes}
    if len(split) < 2:
        raise UserError(f"split={dict(split)} must name two folders or more, e.g. split={{train: 0.9, test: 0.1}}.")
    for name in split:
        if not re.fullmatch(r"[\w-][\w.-]*", name):
            raise UserError(f"split has {name!r}, which is no name of a folder: use letters, digits, '_', '.' and '-'.")
    shares = [float(text) if re.fullmatch(r"0?\.\d+", text) else None for text in split.values()]
    if None not in shares:
        return _by_share(takes, list(split), [share for share in shares if share is not None])
    chosen = {name: EpisodeSelection.parse(text, f"split.{name}") for name, text in split.items()}
    for selection in chosen.values():
        selection.choose(known, where)
    folders = [[name for name in chosen if chosen[name].includes(take.number)] for take in takes]
    if twice := [take.number for take, names in zip(takes, folders, strict=True) if len(names) > 1]:
        raise UserError(f"split puts the episodes {in_short(twice)} into more than one folder.")
    if without := [take.number for take, names in zip(takes, folders, strict=True) if not names]:
        raise UserError(
            f"split puts the episodes {in_short(without)} into no folder: name them, or leave them out with "
            f"drop={in_short(without)}."
        )
    if empty := [name for name in split if [name] not in folders]:
        raise UserError(f"split.{empty[0]}={split[empty[0]]} names episodes alone that are left out.")
    return {name: [take for take, names in zip(takes, folders, strict=True) if names == [name]] for name in split}


def _by_share(takes: list[Take], names: list[str], shares: list[float]) -> dict[str, list[Take]]:
    if len(shares) != 2 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"split: shares are two that add up to 1, not {shares}; more folders are divided by numbers.")
    tasks = [take.instruction for take in takes]
    chosen = {
        name: choose_episodes(tasks, part, shares[1], 1.0)
        for name, part in zip(names, ("train", "validation"), strict=True)
    }
    if empty := [name for name, places in chosen.items() if not places]:
        raise UserError(
            f"split leaves no episode for {empty[0]}: every task has one alone. Divide by numbers, e.g. "
            f"split={{{names[0]}: 0-3, {names[1]}: 4-}}."
        )
    return {name: [takes[i] for i in places] for name, places in chosen.items()}
