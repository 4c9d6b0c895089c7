"""What the policy learns from: data sets, and what their actions mean."""

from __future__ import annotations

from dataclasses import dataclass, field

from robovlms.choices import MISSING, NormalizationMode, Resize, ask


@dataclass(kw_only=True)
class ActionContract:
    """What an action vector means. Data, checkpoint and environment must agree on it, or a run is refused.

    The last entry is always the gripper, -1 closed and +1 open.
    """

    names: list[str] = MISSING  # one per entry, e.g. [dx, dy, dz, droll, dpitch, dyaw, gripper]
    representation: str = MISSING  # e.g. "delta" or "absolute" end-effector pose
    frame: str = ask("tcp")  # e.g. "world" or "tcp"
    units: str = ask("'1 m and 1 rad'")  # what an arm entry of 1.0 stands for
    control_hz: float = ask("10")  # actions a second


@dataclass(kw_only=True)
class NormalizationConfig:
    """How arm actions reach [-1, 1]."""

    mode: NormalizationMode = MISSING
    low: float = -1.0  # for mode=bounds
    high: float = 1.0


@dataclass(kw_only=True)
class DataConfig:
    """A data set: where it lies, how its keys map to ours, what its actions mean."""

    name: str = MISSING
    root: str = ask("/path/to/dataset")
    views: dict[str, str] = MISSING  # our view name -> the data set's key
    contract: ActionContract = MISSING
    normalization: NormalizationConfig = MISSING
    shift: dict[str, int] = field(default_factory=dict)  # random shift per view, px at 224 x 224; 0 or absent: none
    proprio_key: str | None = None  # the data set's key of proprioception; null: the policy does not see it
    proprio_names: list[str] = field(default_factory=list)  # one per entry of proprio_key, e.g. [x, y, z, opening]
    resize: Resize = Resize.device
    skip_bad: bool = False  # drop unreadable segments with a counted warning instead of stopping
    num_workers: int = 4  # loader processes per rank; 0 reads in the training process
    cache_mb: int = 0  # windows kept decoded by every process that reads, 10**6 bytes of pixels; 0: none
    fraction: float = 1.0  # leading share of the training segments, evenly thinned


@dataclass(kw_only=True)
class CalvinDataConfig(DataConfig):
    """CALVIN folder (github.com/mees/calvin, dataset/README.md)."""

    root: str = ask("/path/to/task_ABCD_D")
    train_split: str = "training"
    validation_split: str = "validation"
    few_shot_file: str | None = None  # JSON {task: [[start, end], ...]}: only these segments


@dataclass(kw_only=True)
class LeRobotDataConfig(DataConfig):
    """LeRobotDataset v3.0 folder."""

    action_key: str = "action"
    validation_fraction: float = 0.05  # share of the episodes of every task kept for validation, at least one
