"""What is found in a folder of recordings: values made by a describer, one for each format."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum, auto
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from robovlms.config.choices import MISSING

MAX_EPISODES = 30  # whose numbers are looked at, evenly spread
MAX_ROWS = 20_000  # of them all
DEPTH = re.compile(r"(?i:(?<![a-z])depth(maps?|images?)?(?![a-z]))|[a-z]Depth")  # a word of its own


class Kind(StrEnum):
    """Where a value comes from."""

    found = auto()  # the folder says so
    guess = auto()  # the numbers or a convention suggest it
    question = auto()  # only the owner knows


@dataclass(frozen=True)
class Answer:
    """A value of the data config with what it rests on; of a question, what is asked."""

    value: Any
    kind: Kind
    why: str = ""

    @property
    def comment(self) -> str:
        """Return what stands beside it in a file."""
        return f"guess: {self.why}" if self.kind is Kind.guess else self.why


def found(value: Any, why: str = "") -> Answer:
    """Return a value that the folder tells."""
    return Answer(value, Kind.found, why)


def guess(value: Any, why: str) -> Answer:
    """Return a value that may be wrong, with its reason."""
    return Answer(value, Kind.guess, why)


def tell(value: Any, why: str) -> Answer:
    """Return a value with its reason, which says itself where it is a guess."""
    return guess(value, why.removeprefix("guess: ")) if why.startswith("guess: ") else found(value, why)


def ask(question: str) -> Answer:
    """Return what the owner must say."""
    return Answer(MISSING, Kind.question, question)


@dataclass(frozen=True)
class Camera:
    """A key of pictures."""

    key: str
    size: tuple[int, int] | None  # height, width; None: the folder does not say


@dataclass(frozen=True, kw_only=True)
class Vector:
    """Numbers of every frame: the action, or what the robot feels."""

    key: str  # as `data.action_key` takes it
    names: list[str] | None  # as recorded, one an entry; None: the folder names none
    width: int
    source: str  # where key and names stand, for comments
    choice: str = ""  # why this and no other, where there are several


@dataclass(frozen=True)
class Rows:
    """Numbers of an episode, consecutive from its first frame on."""

    actions: Float64[np.ndarray, "t a"]
    states: Float64[np.ndarray, "t s"] | None

    @property
    def are_whole(self) -> bool:
        """Tell whether there are any, and all are finite; others are the reader's to refuse."""
        is_finite = self.states is None or bool(np.isfinite(self.states).all())
        return bool(len(self.actions)) and bool(np.isfinite(self.actions).all()) and is_finite


@dataclass(frozen=True, kw_only=True)
class Folder:
    """What a folder holds, as far as its files tell."""

    option: str  # of `data=` that reads it
    what: str  # its format, for people
    root: Path
    counts: str
    cameras: Sequence[Camera]
    action: Vector
    state: Vector | None
    rate: Answer  # actions a second
    rows: Sequence[Rows]  # of some episodes
    instructions: Sequence[str]
    robot: str | None = None  # as the folder calls it
    options: dict[str, Answer] = field(default_factory=dict)  # of the format, by key
    contract: dict[str, Answer] = field(default_factory=dict)  # that the files tell, by key
    notes: Sequence[str] = ()  # what a reader of the file should know


def spread(count: int) -> list[int]:
    """Return the numbers of the episodes to look at, of so many."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_EPISODES)).astype(int)).tolist() if count else []


def without_depth(cameras: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the cameras that are not depth by their names, and a note about each of the others."""
    listed = list(cameras)
    depth = [key for key in listed if DEPTH.search(key)]
    notes = [f"{key} is depth by its name, which policies do not see: left out" for key in depth]
    return [key for key in listed if key not in depth], notes
