"""The folder of an evaluation: continued, or begun anew without touching what is not its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robovlms.errors import UserError
from robovlms.files import FolderLock, Replacement, is_marked, mark

RESULTS, SUCCESS, REPORT, VIDEOS = "results.json", "success.png", "report.html", "videos"
LATENCY = "latency"  # folder of the evaluations that success against latency is measured by
EVALUATION = "evaluation"


def journal_name(process: str = "") -> str:
    """Return the name of a process's journal; "": it is the only one of its launch."""
    return ".".join(filter(None, ["episodes", process, "jsonl"]))


def journals(folder: Path) -> list[Path]:
    """List the journals in a folder: of one process, and of those of a launch."""
    return sorted([*folder.glob("episodes.jsonl"), *folder.glob("episodes.rank*.jsonl")])


@contextmanager
def evaluation_folder(folder: Path, *, overwrite: bool) -> Iterator[None]:
    """Hold `folder` for one evaluation, the last thing before it runs.

    With `overwrite` earlier results are set aside. They are deleted when the block ends well, and put back when it
    fails before an episode is finished; nothing else in the folder is touched.

    Raises:
        UserError: the folder holds other things under the names of results, or another process writes it.
        PermissionError: it cannot be written.
    """
    lock, replacement = FolderLock(folder, f"output_dir={folder}"), Replacement(folder, _ours)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise PermissionError(
            f"cannot write to output_dir={folder}: {error.strerror}. Choose another output_dir=..."
        ) from error
    try:
        found = _ours(folder)
        if found and not is_marked(folder, EVALUATION) and not any(map(_is_journal, journals(folder))):
            raise UserError(
                f"output_dir={folder} is not the folder of an evaluation, but holds "
                f"{', '.join(path.name for path in found)}: choose another output_dir=..."
            )
        if overwrite:
            replacement.set_aside()
        mark(folder, EVALUATION)
        yield
        replacement.delete()
    except BaseException:
        if not any(map(_has_finished_episodes, journals(folder))):
            replacement.recover()
        raise
    finally:
        lock.release()


def _ours(folder: Path) -> list[Path]:
    others = [path for name in (RESULTS, SUCCESS, REPORT, VIDEOS, LATENCY) if (path := folder / name).exists()]
    return [*journals(folder), *others]


def _is_journal(path: Path) -> bool:
    """Tell whether a file is a journal; evaluations from before there were markers have one."""
    return "conditions" in _first_line(path)


def _has_finished_episodes(path: Path) -> bool:
    return len(path.read_text(encoding="utf-8", errors="replace").splitlines()) > 1


def _first_line(path: Path) -> dict[str, object]:
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            content = json.loads(file.readline())
        except ValueError:
            return {}
    return content if isinstance(content, dict) else {}
