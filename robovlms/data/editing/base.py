"""What is edited: the recordings of one folder, whatever its format, and which frames of them are taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float64
from numpy import ndarray

from robovlms.data.lerobot.folder import FolderWriter


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One episode of a folder, as far as choosing needs it."""

    number: int  # the folder's own
    length: int  # frames
    instruction: str


@dataclass(frozen=True, kw_only=True)
class Take:
    """The frames of a recording that become an episode of the new folder."""

    source: int  # of the folders that are put together
    recording: int  # its place in `Recordings.listed`
    number: int  # by which options name it: counted on through the folders
    first: int
    length: int
    instruction: str


class Recordings(ABC):
    """The recordings of one folder, and how they are written into a new one."""

    where: str  # the folder, for messages
    fps: int
    robot_type: str | None
    features: dict[str, dict[str, Any]]  # of the new folder
    listed: Sequence[Recording]

    @abstractmethod
    def positions(self, recording: int) -> Float64[ndarray, "t _d"]:
        """Return where the robot is at every frame: what stays the same while it waits."""

    @abstractmethod
    def prepare(self, takes: Sequence[Take]) -> None:
        """Refuse what cannot be written, before anything is.

        Raises:
            FileNotFoundError, UserError: a file is missing or damaged; says what to leave out.
        """

    @abstractmethod
    def into(self, writer: FolderWriter, takes: Sequence[Take]) -> Copying:
        """Return what writes takes of this folder, all that the writer gets of it."""


class Copying(ABC):
    """Takes of one folder on their way into a new one."""

    counts: Counter[tuple[str, str]]  # by feature and what became of videos: files "copied", episodes "encoded"

    @abstractmethod
    def write(self, take: Take) -> None:
        """Append a take to the new folder."""
