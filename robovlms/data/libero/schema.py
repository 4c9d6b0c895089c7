"""Options of `data=libero`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.data import Hdf5DataConfig
from robovlms.config.schemas import schema


@schema("data/libero")
@dataclass(kw_only=True)
class LiberoDataConfig(Hdf5DataConfig):
    """LIBERO or robomimic: a HDF5 file of demonstrations, or a folder of such files."""

    action_key: str = "actions"
    flip: bool = True  # LIBERO's pictures are upside down
