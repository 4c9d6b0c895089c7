"""Which episodes of a folder are used: `data.episodes`, by the folder's own numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robovlms.errors import UserError

FORM = (
    "numbers and ranges with commas between (0-99,200-), a minus before those that are left out (-3,-7-9), or JSON "
    'files (keep.json, -bad.json) that hold a list of numbers, {"keep": [...]} or {"drop": [...]}'
)
LARGEST = 10**9
_PART = re.compile(r"(\d{1,9})(?:(-)(\d{1,9})?)?")


class Span(NamedTuple):
    """Numbers from `first` to `last`, both included."""

    first: int
    last: int  # LARGEST: to the end of the folder

    def __str__(self) -> str:
        if self.last == self.first:
            return f"{self.first}"
        return f"{self.first}-{'' if self.last >= LARGEST else self.last}"


@dataclass(frozen=True)
class EpisodeSelection:
    """The episodes that an option keeps, all where it keeps none by name, without those that it drops."""

    option: str
    kept: tuple[Span, ...] = ()
    dropped: tuple[Span, ...] = ()

    @classmethod
    def parse(cls, text: str | None, option: str = "data.episodes", *, is_drop: bool = False) -> EpisodeSelection:
        """Read the value of an option, and the files that it names; None chooses all.

        Args:
            text: see `FORM`.
            option: its name, for messages.
            is_drop: what it names is left out, without a minus.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: the text, or what a file holds, is no choice of episodes; shows the form.
        """
        if text is None:
            return cls(option)
        kept: list[Span] = []
        dropped: list[Span] = []
        for part in text.strip().removeprefix("[").removesuffix("]").split(","):
            named = part.strip()
            bare = named if is_drop else named.removeprefix("-")
            leaves_out = is_drop or bare != named
            if bare.endswith(".json"):
                keep, drop = _read_file(Path(bare).expanduser(), is_drop=leaves_out, option=option)
                kept += keep or []
                dropped += drop
            else:
                (dropped if leaves_out else kept).append(_span(bare, f"{option}={text}"))
        return cls(option, _merged(kept), _merged(dropped))

    @property
    def is_all(self) -> bool:
        """Tell whether nothing is left out."""
        return not self.kept and not self.dropped

    def includes(self, number: int) -> bool:
        """Tell whether the episode of a number is used."""
        kept = not self.kept or any(span.first <= number <= span.last for span in self.kept)
        return kept and not any(span.first <= number <= span.last for span in self.dropped)

    def __str__(self) -> str:
        return ",".join([*map(str, self.kept), *(f"-{span}" for span in self.dropped)])

    def choose(self, numbers: Sequence[int], where: object) -> list[int]:
        """Return the places in `numbers` of the episodes that are used, in their order.

        Args:
            numbers: of all episodes of the folder, increasing.
            where: the folder, for messages.

        Raises:
            UserError: the folder lacks a number that is named, or nothing is left.
        """
        if self.is_all:
            return list(range(len(numbers)))
        known = np.asarray(numbers, dtype=np.int64)
        has = f"{where} has {_counted(known)}"
        if absent := [str(span) for span in (*self.kept, *self.dropped) if not _is_known(span, known)]:
            more = f" and {len(absent) - 5} others" if len(absent) > 5 else ""
            raise UserError(f"{self.option} names {', '.join(absent[:5])}{more}, but {has}.")
        chosen = np.ones(len(known), bool) if not self.kept else _within(self.kept, known)
        found = np.flatnonzero(chosen & ~_within(self.dropped, known)).tolist()
        if not found:
            raise UserError(f"{self.option}={self} leaves no episode: {has}.")
        return found


def in_short(numbers: Iterable[int]) -> str:
    """Return numbers as `data.episodes` takes them: 0-99,203."""
    return ",".join(map(str, _merged([Span(number, number) for number in numbers])))


def _counted(known: np.ndarray) -> str:
    if not len(known):
        return "no episode"
    return f"{len(known)} episode{'s' if len(known) > 1 else ''}, {in_short(known.tolist())}"


def _span(text: str, told: str) -> Span:
    match = _PART.fullmatch(text)
    if match is None:
        raise UserError(f"{told}: '{text}' is no choice of episodes. Write {FORM}.")
    first = int(match[1])
    last = first if match[2] is None else LARGEST if match[3] is None else int(match[3])
    if last < first:
        raise UserError(f"{told}: the range {text} ends before it begins; write {last}-{first}.")
    return Span(first, last)


def _read_file(path: Path, *, is_drop: bool, option: str) -> tuple[list[Span] | None, list[Span]]:
    """Return what a file keeps, None where it says nothing of that, and what it drops."""
    if not path.is_file():
        raise FileNotFoundError(f"{option}: {path} does not exist (below {Path.cwd()}).")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{option}: {path} is not valid JSON ({error}).") from error
    if isinstance(content, list):
        content = {"drop" if is_drop else "keep": content}
    if not isinstance(content, dict) or not content.keys() & {"keep", "drop"}:
        raise UserError(f'{option}: {path} holds neither a list of numbers nor {{"keep": [...]}} or {{"drop": [...]}}.')
    if is_drop and "keep" in content:
        told = "what is named here is left out: omit the minus, or the file"
        raise UserError(f'{option}: {path} says what to keep ("keep"), but {told}.')
    keep = _numbers(content["keep"], path, option) if "keep" in content else None
    if keep == []:
        raise UserError(f"{option}: {path} keeps no episode.")
    return keep, _numbers(content.get("drop", []), path, option)


def _numbers(values: Any, path: Path, option: str) -> list[Span]:
    if not isinstance(values, list):
        raise UserError(f"{option}: {path} must list numbers of episodes, not {values!r:.80}.")
    for value in values:
        if type(value) is not int or not 0 <= value < LARGEST:
            raise UserError(f"{option}: {path} lists {value!r:.80}, which is no number of an episode (0, 1, 2, ...).")
    return [Span(value, value) for value in values]


def _merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    found: list[Span] = []
    for span in sorted(set(spans)):
        if found and span.first <= found[-1].last + 1:
            found[-1] = Span(found[-1].first, max(found[-1].last, span.last))
        else:
            found.append(span)
    return tuple(found)


def _is_known(span: Span, known: np.ndarray) -> bool:
    count = int(np.searchsorted(known, span.last, "right") - np.searchsorted(known, span.first))
    return count == span.last - span.first + 1 or (span.last == LARGEST and span.first in known)


def _within(spans: Sequence[Span], known: np.ndarray) -> np.ndarray:
    found = np.zeros(len(known), bool)
    for span in spans:
        found[np.searchsorted(known, span.first) : np.searchsorted(known, span.last, "right")] = True
    return found
