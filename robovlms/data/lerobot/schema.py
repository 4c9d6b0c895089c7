"""Options of `data=lerobot`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.data import DataConfig


@dataclass(kw_only=True)
class LeRobotDataConfig(DataConfig):
    """LeRobotDataset folder, v2.0, v2.1 or v3.0."""

    action_key: str = "action"  # or parts put together: action.position+action.rotation[0:3]+action.gripper
    language_key: str = "task_index"  # column of numbers of tasks
    timestamp_tolerance_s: float | None = None  # off frame_index / fps, of videos; null: a quarter of a frame's period
    validation_fraction: float = 0.05  # share of the episodes of every task kept for validation, at least one
