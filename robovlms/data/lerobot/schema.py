"""Options of `data=lerobot`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.data import DataConfig
from robovlms.config.fields import number
from robovlms.config.schemas import schema


@schema("data/lerobot")
@dataclass(kw_only=True)
class LeRobotDataConfig(DataConfig):
    """LeRobotDataset folder, v2.0, v2.1 or v3.0."""

    action_key: str = "action"  # or parts put together: action.position+action.rotation[0:3]+action.gripper
    language_key: str = "task_index"  # column of numbers of tasks
    instruction: str | None = None  # of all episodes; null: the folder's own tasks
    # off frame_index / fps, of videos; null: a quarter of a frame's period
    timestamp_tolerance_s: float | None = number(None, above=0)
    # share of the episodes of every task kept for validation, at least one
    validation_fraction: float = number(0.05, at_least=0, below=1)
