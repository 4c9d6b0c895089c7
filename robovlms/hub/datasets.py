"""Data sets on the Hugging Face Hub: `hf://<owner>/<name>[@<revision>][/<folder>]`, downloaded into its cache."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from robovlms.errors import UserError
from robovlms.hub.repository import Repository, explained

log = logging.getLogger(__name__)

FORM = "hf://<owner>/<name>, with @<revision> for a branch, a tag or a commit, and /<folder> for a folder in it"
_ADDRESS = re.compile(
    r"hf:/{1,2}(?:datasets/)?([\w.-]+/[\w.-]+)(?:@((?:refs/(?:convert|pr)/)?[\w.-]+))?((?:/[^/@*?\[\]]+)*)/?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class DataAddress:
    """A folder of a data set's repository, at a revision."""

    repository: Repository
    folder: str  # below the repository's; "": all of it

    @classmethod
    def parse(cls, root: str, option: str = "data.root") -> DataAddress | None:
        """Return what `data.root` names on the Hub; None where it is a folder of this machine.

        Raises:
            UserError: it begins like an address, and is none; shows the form.
        """
        if not root.startswith("hf:"):
            return None
        match = _ADDRESS.fullmatch(root)
        if match is None or ".." in match[3].split("/"):
            raise UserError(f"{option}={root} is no address of a data set on the Hub: write {FORM}.")
        return cls(Repository(match[1], match[2], kind="dataset"), match[3].strip("/"))

    def __str__(self) -> str:
        return f"{self.repository}" + (f"/{self.folder}" if self.folder else "")

    @property
    def place(self) -> tuple[str, str]:
        """What it names at whatever revision."""
        return self.repository.name, self.folder

    @property
    def is_pinned(self) -> bool:
        """Tell whether its revision is a commit, which never changes."""
        return _COMMIT.fullmatch(self.repository.revision or "") is not None

    def pinned(self) -> DataAddress:
        """Return it with the commit that its revision is now.

        Raises:
            UserError: the Hub does not say; says what to do.
        """
        if self.is_pinned:
            return self
        commit = self._snapshot([]).name
        return replace(self, repository=replace(self.repository, revision=commit))

    def download(self, patterns: Sequence[str]) -> Path:
        """Return the folder, with all files in it that match one of `patterns`; those that are there are kept.

        Raises:
            UserError: it cannot be downloaded, or there is no such file; says what to do.
        """
        below = f"{self.folder}/" if self.folder else ""
        root = self._snapshot([f"{below}{pattern}" for pattern in patterns]) / self.folder
        if not root.is_dir():
            raise UserError(
                f"{self}: {self.repository} has no folder {self.folder!r} with files that are read. Its page on the "
                "Hub lists what there is."
            )
        return root

    def _snapshot(self, patterns: list[str]) -> Path:
        from huggingface_hub import snapshot_download

        name, revision = self.repository.name, self.repository.revision
        with explained(self.repository, "download"):
            return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns))
