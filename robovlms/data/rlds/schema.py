"""Options of `data=rlds`."""

from __future__ import annotations

from dataclasses import dataclass, field

from robovlms.config.choices import (
    PictureFormat,
    RLDSTransform,
)
from robovlms.config.data import DataConfig
from robovlms.config.fields import number
from robovlms.config.schemas import schema


@schema("data/rlds")
@dataclass(kw_only=True)
class RLDSDataConfig(DataConfig):
    """TFDS folder of TFRecords, as Open X-Embodiment publishes them (arXiv:2310.08864)."""

    train_split: str = "train"
    validation_split: str = "val"  # where there is none: the last validation_fraction of the training split
    validation_fraction: float = number(0.05, at_least=0, below=1)
    transform: RLDSTransform = RLDSTransform.none
    action_key: str = "action"  # of a step, or keys and parts of them put together: action/world_vector+action[6]
    language_key: str = "language_instruction"
    drop_first: int = number(0, at_least=0)  # leading steps of every episode that are left out
    success_key: str | None = None  # a flag of an episode; where it is false, the episode is left out (kuka: success)
    bgr: dict[str, PictureFormat] = field(default_factory=dict)  # view -> the format whose pictures have blue first
