"""What a run records of its data, and where they lie on this machine: commits of the Hub, episodes by number."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from robovlms.config.data import DataConfig, MixtureDataConfig
from robovlms.data.selection import EpisodeSelection
from robovlms.errors import UserError
from robovlms.hub.datasets import DataAddress
from robovlms.registry import DATASETS

log = logging.getLogger(__name__)

D = TypeVar("D", bound=DataConfig)


def pin(data: D, resumed: DataConfig | None = None, option: str = "data") -> D:
    """Return a data config that means the same tomorrow: with the commit of an address, and numbers in place of files.

    Args:
        data: of a run; of a mixture, its sources are pinned.
        resumed: of the checkpoint that the run goes on from: an address without a revision is that of its commit.
        option: the config's place, for messages.

    Raises:
        FileNotFoundError: a list of episodes is not there.
        UserError: an address or a list cannot be read, or is of another commit than the checkpoint's.
    """
    if isinstance(data, MixtureDataConfig):
        before = resumed.sources if isinstance(resumed, MixtureDataConfig) else {}
        sources = {
            name: pin(source, before.get(name), f"{option}.sources.{name}") for name, source in data.sources.items()
        }
        return replace(data, sources=sources)
    selection = EpisodeSelection.parse(data.episodes, f"{option}.episodes")
    episodes = None if selection.is_all else str(selection)
    address = DataAddress.parse(data.root, f"{option}.root")
    if address is None:
        return replace(data, episodes=episodes)
    found = _commit_of(address, resumed, f"{option}.root")
    return replace(data, episodes=episodes, root=str(found))


def _commit_of(address: DataAddress, resumed: DataConfig | None, option: str) -> DataAddress:
    before = None if resumed is None else DataAddress.parse(resumed.root, option)
    if before is None or before.place != address.place or not before.is_pinned:
        return address.pinned()
    if address.repository.revision is None:
        return before
    if (now := address.pinned()) != before:
        raise UserError(
            f"{option}={address} is commit {now.repository.revision}, but the run that is resumed was trained on "
            f"{before}: resume it without a revision, or start a new run with another output_dir=..."
        )
    return before


def fetch(data: D, views: list[str]) -> D:
    """Return a data config with folders of this machine in place of addresses of the Hub; downloads what is read.

    Args:
        data: of a run; of a mixture, its sources are fetched.
        views: that are read, by our names: videos of others are not downloaded.

    Raises:
        UserError: something cannot be downloaded; says what to do.
    """
    if isinstance(data, MixtureDataConfig):
        return replace(data, sources={name: fetch(source, views) for name, source in data.sources.items()})
    address = DataAddress.parse(data.root)
    if address is None:
        return data
    reader = DATASETS.get(data.name)
    root = fetch_folder(address, [*reader.index_files] or ["*"])
    data = replace(data, root=str(root))
    if reader.index_files:
        fetch_folder(address, reader.needed_files(data, [view for view in views if view in data.views]))
    return data


def fetch_folder(address: DataAddress, patterns: list[str]) -> Path:
    """Download the files of a folder that match a pattern, and say where they are."""
    log.info("%s: downloading what is not here yet", address)
    root = address.download(patterns)
    log.info("%s is %s", address, root)
    return root


def local_folder(root: str, option: str) -> Path:
    """Return a folder of this machine, or all of a data set on the Hub.

    Raises:
        UserError: see `fetch`.
    """
    address = DataAddress.parse(root, option)
    return Path(root).expanduser() if address is None else fetch_folder(address.pinned(), ["*"])
