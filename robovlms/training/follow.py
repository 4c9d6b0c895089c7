"""A run that is still training, seen from another process: its checkpoints as they appear, held while they are used."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from robovlms.config.choices import CheckpointChoice
from robovlms.errors import UserError
from robovlms.files import FolderLock, atomic_folder, remove_folder
from robovlms.policy.checkpoint import checkpoints, is_checkpoint, step_of

log = logging.getLogger(__name__)

POLL_S = 2.0
HELD = Path("evaluation", "held")  # inside a run: links to the checkpoints that are being evaluated


def follow(run_folder: Path, choice: CheckpointChoice) -> Iterator[Path]:
    """Yield the checkpoints of a run as they appear, each held until the next is asked for, until the run has ended.

    Args:
        run_folder: of the run.
        choice: which are wanted; of the last alone, every one.

    Raises:
        UserError: it is a single checkpoint.
        FileNotFoundError: there is no such folder.
    """
    if is_checkpoint(run_folder):
        raise UserError(f"watch=true follows a run, and checkpoint={run_folder} is one of its checkpoints.")
    if not run_folder.is_dir():
        raise FileNotFoundError(f"checkpoint={run_folder} does not exist: watch=true follows a run that has begun.")
    seen: set[int] = set()
    while (checkpoint := _next_checkpoint(run_folder, choice, seen)) is not None:
        seen.add(step_of(checkpoint))
        try:
            with held(checkpoint, run_folder) as folder:
                yield folder
        except DeletedError as error:
            log.warning("%s", error)


def _next_checkpoint(run_folder: Path, choice: CheckpointChoice, seen: Collection[int]) -> Path | None:
    """Wait for the next checkpoint; None: the run has ended, and all of them have been seen."""
    lock = FolderLock(run_folder, "checkpoint")
    while True:
        has_ended = not lock.is_held()  # asked first: what the run has left is whole now
        found = {step_of(path): path for path in (*checkpoints(run_folder / HELD), *checkpoints(run_folder))}
        for step in sorted(found.keys() - set(seen)):
            if choice.every is None or step in choice:
                return found[step]
        if has_ended:
            return None
        time.sleep(POLL_S)


class DeletedError(FileNotFoundError):
    """A run has deleted a checkpoint before it could be held."""


@contextmanager
def held(checkpoint: Path, run_folder: Path) -> Iterator[Path]:
    """Return a checkpoint that stays what it is while the run deletes its own (`trainer.keep_last`).

    Files are linked, which costs no space while the run keeps them, or copied where the file system has no links. They
    are deleted when the block ends well; otherwise they stay, for another attempt.

    Raises:
        DeletedError: the run has deleted it already.
    """
    target = run_folder / HELD / "checkpoints" / checkpoint.name
    if checkpoint != target:
        try:
            with atomic_folder(target) as folder:
                shutil.copytree(checkpoint, folder, copy_function=_link, dirs_exist_ok=True)
        except OSError as error:
            if checkpoint.is_dir():
                raise
            raise DeletedError(f"{checkpoint} was deleted by trainer.keep_last before its evaluation began") from error
    yield target
    remove_folder(target)
    for folder in (target.parent, target.parents[1]):
        with suppress(OSError):  # another is held
            folder.rmdir()


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)
