"""Checkpoints on the Hugging Face Hub: `hf://<owner>/<name>[@<revision>]`, downloaded into its cache, uploaded in one
commit.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from robovlms.errors import UserError

log = logging.getLogger(__name__)

FORM = "hf://<owner>/<name>, or hf://<owner>/<name>@<revision> for a branch, a tag or a commit"
LOG_IN = "log in with `hf auth login`, or set the environment variable HF_TOKEN"
KEPT = {".gitattributes"}  # files of a repository that the Hub itself has put there
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_ADDRESS = re.compile(rf"hf:/{{1,2}}({_NAME.pattern})(?:@([\w./-]+))?")  # as a `Path`, it has one slash left


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub, at a revision."""

    name: str  # <owner>/<name>
    revision: str | None = None  # branch, tag or commit; None: the main branch
    kind: str = "model"  # or dataset

    def __str__(self) -> str:
        return f"hf://{self.name}" + (f"@{self.revision}" if self.revision else "")

    @classmethod
    def of(cls, name: str, revision: str | None = None, option: str = "repo") -> Repository:
        """Return a repository from its name.

        Raises:
            UserError: it is no name of a repository.
        """
        if not _NAME.fullmatch(name):
            raise UserError(f"{option}={name} is no repository of the Hub: write <owner>/<name>, e.g. my-lab/lift_cup.")
        return cls(name, revision)


def is_on_hub(path: Path) -> bool:
    """Tell whether a path is an address of the Hub, as `Path("hf://owner/name")` is."""
    return path.parts[:1] == ("hf:",)


def repository_of(path: Path) -> Repository:
    """Return the repository that an address names.

    Raises:
        UserError: it is no such address; shows the form.
    """
    match = _ADDRESS.fullmatch(str(path))
    if match is None:
        shown = str(path).replace("hf:/", "hf://", 1)
        raise UserError(f"checkpoint={shown} is no address of a checkpoint on the Hub: write {FORM}.")
    return Repository(match[1], match[2])


def origin(folder: Path) -> Repository | None:
    """Return where a folder of the Hub's cache was downloaded from, with the commit; None: another folder."""
    folder = folder.absolute()
    kind, _, name = folder.parents[1].name.partition("--") if len(folder.parents) > 1 else ("", "", "")
    if folder.parent.name != "snapshots" or kind != "models":
        return None
    return Repository(name.replace("--", "/", 1), folder.name)


def address_of(folder: Path) -> str:
    """Return how results name a checkpoint: its absolute path, or its address on the Hub with the commit."""
    return str(origin(folder) or folder.resolve())


def download(repository: Repository, manifest: str) -> Path:
    """Return the folder of the cache that holds what a repository's manifest lists; what is there already is kept.

    Args:
        repository: what is downloaded; its revision becomes a commit, the folder's name.
        manifest: file of the repository whose "files" are the paths in it.

    Raises:
        UserError: it cannot be downloaded, or is no checkpoint; says what to do.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    with explained(repository, "download"):
        listed = Path(hf_hub_download(repository.name, manifest, revision=repository.revision))
        commit = listed.parent.name
        files = _listed(listed, repository)
        folder = snapshot_download(repository.name, revision=commit, allow_patterns=[manifest, *files])
    log.info("%s is commit %s: %s", repository, commit, folder)
    return Path(folder)


def _listed(manifest: Path, repository: Repository) -> list[str]:
    try:
        return list(json.loads(manifest.read_text(encoding="utf-8"))["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{repository} holds no checkpoint of robovlms: its {manifest.name} lists no files. Was it made by "
            "scripts/push_to_hub.py?"
        ) from error


def upload(folder: Path, repository: Repository, manifest: str, *, private: bool) -> str:
    """Make a folder the whole content of a repository, in one commit; return the commit's address for a browser.

    A repository that does not exist is created. Of one that does, the files of its last checkpoint that this one has
    not are deleted, and other files stay.

    Raises:
        UserError: nobody is logged in, or may not write there; the repository holds something else.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, name, revision = HfApi(), repository.name, repository.revision
    ours = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    with explained(repository, "upload"):
        created = api.create_repo(name, private=private, exist_ok=True)
        if created.repo_id != name:
            raise UserError(f"repo={name}: the Hub calls it {created.repo_id}: give that name.")
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        there = set(api.list_repo_files(name, revision=revision)) - KEPT
        stale = _stale(there, ours, repository, manifest)
        commit = api.create_commit(
            name,
            [
                *(CommitOperationAdd(path_in_repo=file, path_or_fileobj=folder / file) for file in ours),
                *(CommitOperationDelete(path_in_repo=file) for file in stale),
            ],
            commit_message="Upload a checkpoint of robovlms",
            revision=revision,
        )
    return str(commit.commit_url)


def _stale(there: set[str], ours: Sequence[str], repository: Repository, manifest: str) -> list[str]:
    """Return the files of the repository's last checkpoint that are not in this one.

    Raises:
        UserError: the repository holds something, and it is no checkpoint of ours.
    """
    from huggingface_hub import hf_hub_download

    if manifest in there:
        listed = Path(hf_hub_download(repository.name, manifest, revision=repository.revision))
        return sorted(set(_listed(listed, repository)) & there - set(ours))
    if there - {"README.md"}:
        raise UserError(
            f"{repository} holds something else than a checkpoint of robovlms ({', '.join(sorted(there)[:3])}, ...), "
            "and is left alone: choose another repo=..."
        )
    return []


@contextmanager
def explained(repository: Repository, what: str) -> Iterator[None]:
    """Say what to do about an error of the Hub.

    Args:
        repository: that it is about.
        what: `download` or `upload`.

    Raises:
        UserError: instead of what the Hub's client raises.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(f"{repository} is gated: ask for access on its page of the Hub, and {LOG_IN}.") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repository}: the repository has no revision {repository.revision}.") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(_unreachable(repository, "is not in the cache, or not all of it", error.__cause__)) from error
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"{repository} holds no checkpoint of robovlms: it has no manifest.json. Was it made by "
            "scripts/push_to_hub.py?"
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f"{repository} is no repository of the Hub: {error}") from error
    except errors.HfHubHTTPError as error:
        raise UserError(_refused(repository, what, error.response.status_code, str(error))) from error
    except (errors.OfflineModeIsEnabled, errors.HTTPError, ConnectionError) as error:  # type: ignore[attr-defined]
        raise UserError(_unreachable(repository, f"needs the network to {what}", error)) from error


def _refused(repository: Repository, what: str, status: int, error: str) -> str:
    if status == 404 or (status == 401 and what == "download"):
        return (
            f"{repository}: the Hub has no such repository, or a private one that you may not see. Check its name; to "
            f"see private ones, {LOG_IN}."
        )
    if status == 401:
        return f"repo={repository.name}: the Hub does not know you: {LOG_IN}; the token needs the permission to write."
    if status == 403:
        return (
            f"{repository}: you may not {what} there with this token: {LOG_IN} with one that may, or choose another "
            "repository."
        )
    return f"{repository}: the Hub answered {status} ({' '.join(error.split())[:200]}): try again later."


def _unreachable(repository: Repository, what: str, error: BaseException | None) -> str:
    from huggingface_hub import errors

    offline = isinstance(error, errors.OfflineModeIsEnabled)
    kind = "" if repository.kind == "model" else f" --repo-type {repository.kind}"
    told = " ".join(str(error or "").split())[:200]
    why = "HF_HUB_OFFLINE=1 is set" if offline else f"the Hub is not reached ({type(error).__name__}: {told})"
    return (
        f"{repository} {what}, and {why}: try again with a network and without HF_HUB_OFFLINE. A machine without a "
        f"network can be given a folder: `hf download {repository.name}{kind} --local-dir <folder>` elsewhere."
    )
