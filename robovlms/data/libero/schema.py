"""Options of `data=libero`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.data import DataConfig
from robovlms.config.fields import number
from robovlms.config.schemas import schema


@schema("data/libero")
@dataclass(kw_only=True)
class LiberoDataConfig(DataConfig):
    """LIBERO or robomimic: a HDF5 file of demonstrations, or a folder of such files."""

    action_key: str = "actions"
    validation_fraction: float = number(0.05, at_least=0, below=1)
    instruction: str | None = None  # of all demonstrations; unset: the file's own (LIBERO's problem_info or its name)
    flip: bool = True  # LIBERO's pictures are upside down
