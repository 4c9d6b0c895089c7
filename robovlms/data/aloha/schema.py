"""Options of `data=aloha`."""

from __future__ import annotations

from dataclasses import dataclass, field

from robovlms.config.data import Hdf5DataConfig
from robovlms.config.schemas import schema


@schema("data/aloha")
@dataclass(kw_only=True)
class AlohaDataConfig(Hdf5DataConfig):
    """ALOHA, ACT and what records like them: a folder of HDF5 files, an episode each."""

    action_key: str = "action"
    language_key: str = "language_instruction"  # attribute or dataset of a file, where `instruction` is null
    bgr: list[str] = field(default_factory=list)  # views whose pictures have blue first
