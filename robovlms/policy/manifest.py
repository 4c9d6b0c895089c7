"""What a checkpoint is made of: sizes and SHA-256 of its files, written last and held against the folder on loading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from safetensors import SafetensorError, safe_open

from robovlms.errors import UserError
from robovlms.files import atomic_folder, digest, hash_file, write_text
from robovlms.hub.repository import origin

MANIFEST = "manifest.json"
HEADER = {"manifest": MANIFEST}  # metadata of model.safetensors: this checkpoint was written with a manifest
Entries: TypeAlias = dict[str, dict[str, int | str]]  # "size" in bytes and "sha256", by path inside the checkpoint


class DamagedCheckpointError(UserError):
    """A checkpoint is not what was written; names it and the file."""

    def __init__(self, folder: Path, what: str) -> None:
        advice = (
            "Copy it again from where it came, or use an earlier one (.../checkpoints/step_<number>; "
            "trainer.resume=auto finds the newest whole one)."
        )
        if (repository := origin(folder)) is not None:
            advice = (
                f"Delete that folder's files in the cache and download {repository} again: `hf download "
                f"{repository.name} --revision {repository.revision} --force-download`. If it is damaged still, it was "
                "changed on the Hub: choose an earlier revision."
            )
        super().__init__(f"checkpoint {folder} is damaged: {what}. {advice}")
        self.what = what


@contextmanager
def new_checkpoint(target: Path) -> Iterator[Path]:
    """Return a folder to fill; it becomes `target`, with a manifest of everything in it, or disappears when it fails.

    Raises:
        OSError: the disk is full or not writable.
    """
    with atomic_folder(target) as folder:
        yield folder
        entries = _entries_of(folder)
        write_text(folder / MANIFEST, json.dumps({"files": entries, "digest": _digest(entries)}, indent=1) + "\n")


def check_checkpoint(folder: Path, *, hashes: bool = True) -> None:
    """Hold a checkpoint's files against its manifest; of one from before there were any, hold them against their form.

    Reads every byte once, which loading then finds in memory; without `hashes` it compares sizes alone.

    Raises:
        DamagedCheckpointError: a file is missing, has another size or another content, or cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        _check_form(folder)
        return
    entries = _read_entries(folder)
    for name, entry in entries.items():
        file = folder / name
        if not file.is_file():
            raise DamagedCheckpointError(folder, f"{name} is missing")
        if (size := file.stat().st_size) != entry["size"]:
            raise DamagedCheckpointError(folder, f"{name} has {size} bytes instead of {entry['size']}")
    if not hashes:
        return
    with ThreadPoolExecutor(4) as pool:
        for (name, entry), sha256 in zip(
            entries.items(), pool.map(lambda name: hash_file(folder / name), entries), strict=True
        ):
            if sha256 != entry["sha256"]:
                raise DamagedCheckpointError(folder, f"{name} has another content than was written (SHA-256)")


def checkpoint_digest(folder: Path) -> str:
    """Return the SHA-256 that stands for a checkpoint: of its manifest, or of what its manifest would hold.

    Raises:
        DamagedCheckpointError: the manifest cannot be read.
    """
    return _digest(_read_entries(folder) if (folder / MANIFEST).is_file() else _entries_of(folder))


def _entries_of(folder: Path) -> Entries:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(4) as pool:  # hashing lets other threads run
        hashes = pool.map(hash_file, files)
        return {
            path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256}
            for path, sha256 in zip(files, hashes, strict=True)
        }


def _read_entries(folder: Path) -> Entries:
    with reading(folder, MANIFEST):
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        entries: Entries = content["files"]
        if content["digest"] != _digest(entries):
            raise ValueError("it has another content than was written")
    return entries


def _digest(entries: Entries) -> str:
    return digest(json.dumps(entries, sort_keys=True))


def _check_form(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        with reading(folder, name):
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    if HEADER.items() <= (file.metadata() or {}).items():
                        raise DamagedCheckpointError(folder, f"{MANIFEST} is missing")


@contextmanager
def reading(folder: Path, name: str) -> Iterator[None]:
    """Say in an error which file of which checkpoint it is about.

    Raises:
        DamagedCheckpointError: instead of what a reader raises.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise DamagedCheckpointError(folder, f"{name} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise DamagedCheckpointError(folder, f"{name} cannot be read ({type(error).__name__}: {error})") from error
