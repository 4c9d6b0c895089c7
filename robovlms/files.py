"""Files that appear whole or not at all, folders that belong to one process, and the hashes that tell a change.

Every atomic write, lock and hash of the package is made here.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from robovlms.errors import UserError, writing

PARTIAL, REMOVED = ".partial", ".removed"  # ends of names of what is being written, and of what is being deleted
MARKER, LOCK, REPLACED = ".robovlms.json", ".lock", ".replaced"  # inside a folder of ours
_POINTER = b"version https://git-lfs.github.com/spec/"
_OLD_POINTER = b"version https://hawser.github.com/spec/"
_MAX_POINTER_BYTES = 1024
HEARTBEAT_S, STALE_S = 20.0, 120.0  # a lock is refreshed, and of another machine counts as left behind, after so long


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Return a folder to fill; it becomes `target` when the block ends, or disappears when it fails.

    A `target` that exists is renamed aside before, and deleted after: there is a whole one at any time.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    partial = target.with_name(f".{target.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(target):
            partial.mkdir(parents=True)
            yield partial
            for path in [*partial.rglob("*"), partial]:
                _sync(path)
            aside = _rename_aside(target) if target.exists() else None
            partial.rename(target)
            _sync(target.parent)
            if aside is not None:
                shutil.rmtree(aside)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def atomic_file(target: Path) -> Iterator[IO[bytes]]:
    """Return a binary file to write; it becomes `target` when the block ends, or disappears when it fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        _sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write UTF-8, at once or not at all."""
    with atomic_file(target) as file:
        file.write(text.encode())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines; what a killed process left half-written is not among them."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def remove_folder(folder: Path) -> None:
    """Delete a folder; it is renamed first, so that an interruption never leaves half of it under its name."""
    shutil.rmtree(_rename_aside(folder))


def _rename_aside(folder: Path) -> Path:
    aside = folder.with_name(f".{folder.name}.{os.getpid()}{REMOVED}")
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)


def sweep(folder: Path, names: str) -> None:
    """Delete what interrupted writes and removals of files called `names` (a pattern) left in a folder."""
    for end in (PARTIAL, REMOVED):
        for path in folder.glob(f".{names}{end}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def exclusive(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path` for a while; processes of one machine wait for the one that has it.

    Raises:
        BlockingIOError: another process has it, and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


class FolderLock:
    """A folder is written by one process at a time: `acquire` or be told who has it.

    The file says host, pid and time. On one machine the system drops the lock with its process, however that ended;
    across machines whose file system shares no locks, the file's time is refreshed, and one that is older than
    `STALE_S` is left behind.
    """

    def __init__(self, folder: Path, option: str) -> None:
        """Take the folder, and how the user names it, for messages."""
        self.path, self._option = folder / LOCK, option
        self._descriptor: int | None = None
        self._stop = threading.Event()

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            UserError: another process writes the folder; names it.
        """
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._check_free(descriptor)
                if self.path.exists() and os.path.samestat(os.fstat(descriptor), self.path.stat()):
                    break  # else its last holder deleted it in between
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        self._descriptor = descriptor
        me = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(me).encode(), 0)
        threading.Thread(target=self._refresh, daemon=True).start()

    def _check_free(self, descriptor: int) -> None:
        changed, holder = os.fstat(descriptor).st_mtime, os.pread(descriptor, 4096, 0).decode(errors="replace")
        if _try_lock(descriptor) and not (self._is_foreign(holder) and self._is_fresh(changed)):
            return
        raise UserError(
            f"{self._option} is being written by another run ({_describe(holder)}): wait for it, end it, or choose "
            f"another {self._option.partition('=')[0]}=... If that run is surely gone, delete {self.path}."
        )

    def release(self) -> None:
        """Release the lock; without one nothing happens."""
        self._stop.set()
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def is_held(self) -> bool:
        """Tell whether a process that lives writes the folder, without getting into its way."""
        try:
            changed, holder = self.path.stat().st_mtime, self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        return not _has_ended(holder) and self._is_fresh(changed)

    def _refresh(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            if (descriptor := self._descriptor) is not None:
                os.utime(descriptor)

    @staticmethod
    def _is_foreign(holder: str) -> bool:
        try:
            return json.loads(holder)["host"] != socket.gethostname()
        except (ValueError, KeyError, TypeError):
            return False

    def _is_fresh(self, changed: float) -> bool:
        """Compare with the file server's clock, not ours."""
        probe = self.path.with_name(f"{LOCK}.{os.getpid()}{PARTIAL}")
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now - changed < STALE_S


def _try_lock(descriptor: int) -> bool:
    """Lock as `lockf` does: children that are forked do not keep the lock of a parent that is gone."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise  # a file system without locks: the file's time decides
    return True


def _has_ended(holder: str) -> bool:
    """Tell whether the process that a lock names ran on this machine, and does no more."""
    try:
        said = json.loads(holder)
        if said["host"] == socket.gethostname():
            os.kill(said["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False  # another user's, or it is only about to say who it is
    return False


def _describe(holder: str) -> str:
    try:
        said = json.loads(holder)
        return f"host {said['host']}, pid {said['pid']}, since {said['started']}"
    except (ValueError, KeyError, TypeError):
        return "it does not say which"


def mark(folder: Path, kind: str) -> None:
    """Write down that a folder is ours, and of what kind: `run` or `evaluation`."""
    write_text(folder / MARKER, json.dumps({"kind": kind}) + "\n")


def is_marked(folder: Path, kind: str) -> bool:
    """Tell whether `mark` said so."""
    try:
        return json.loads((folder / MARKER).read_text(encoding="utf-8"))["kind"] == kind
    except (OSError, ValueError, KeyError, TypeError):
        return False


class Replacement:
    """What a folder held of ours, set aside inside it until something better is there.

    Only what `ours` lists is touched: whatever else lies in the folder stays where it is.
    """

    def __init__(self, folder: Path, ours: Callable[[Path], Sequence[Path]]) -> None:
        """Take the folder, and what lists the paths in it that are ours."""
        self.folder, self._ours = folder, ours
        self._aside, self._whole = folder / REPLACED, folder / REPLACED / "whole"

    def recover(self) -> bool:
        """Put back what an interrupted replacement set aside, dropping what it began; tell whether there was any."""
        sweep(self.folder, f"{REPLACED}.*")
        if not self._aside.is_dir():
            return False
        if self._whole.is_file():
            self._delete(self._ours(self.folder))
            self._whole.unlink()
        for path in sorted(self._aside.rglob("*")):
            target = self.folder / path.relative_to(self._aside)
            if path.exists() and not target.exists():
                path.rename(target)
        shutil.rmtree(self._aside)
        return True

    def set_aside(self) -> None:
        """Move what is ours out of the way; `recover` brings it back, `delete` ends it."""
        if self._whole.is_file():
            self._delete(self._ours(self.folder))
            return
        for path in self._ours(self.folder):
            target = self._aside / path.relative_to(self.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        self._aside.mkdir(exist_ok=True)
        self._whole.touch()

    def delete(self) -> None:
        """Delete what was set aside, if anything."""
        if self._aside.is_dir():
            remove_folder(self._aside)

    @staticmethod
    def _delete(paths: Sequence[Path]) -> None:
        for path in paths:
            remove_folder(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def pointer_problem(path: Path) -> str | None:
    """Return what to say of a file that is a Git LFS pointer, None of any other; a large file is not read.

    Source: github.com/git-lfs/git-lfs, docs/spec.md: a few lines of text, the first of them the version, below 1024
    bytes.
    """
    try:
        if path.stat().st_size > _MAX_POINTER_BYTES:
            return None
        text = path.read_bytes()
    except OSError:
        return None
    if not text.startswith((_POINTER, _OLD_POINTER)):
        return None
    size = re.search(rb"^size (\d{1,18})$", text, re.MULTILINE)
    missing = f", and its {int(size[1])} bytes are missing" if size else ""
    return (
        f"it is a Git LFS pointer{missing}: the folder was cloned without Git LFS. Run `git lfs install` and "
        "`git lfs pull` in the clone, or download the files again"
    )


def refuse_pointer(path: Path) -> None:
    """Raise UserError for a Git LFS pointer; to be called where a file turns out to be unreadable."""
    if (problem := pointer_problem(path)) is not None:
        raise UserError(f"{path} cannot be read: {problem}.")
