"""What the commands beside training are asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from robovlms.config.checks import (
    check_data,
    check_views,
    check_window,
)
from robovlms.config.choices import (
    MISSING,
    ImageFormat,
    Split,
    ask,
)
from robovlms.config.closed_loop import CollectConfig, EvaluationConfig, SimConfig
from robovlms.config.data import (
    DataConfig,
)
from robovlms.config.policy import ViewConfig, WindowConfig
from robovlms.errors import UserError


@dataclass(kw_only=True)
class PackConfig:
    """How `scripts/convert_data.py` packs."""

    image_format: ImageFormat = ImageFormat.raw
    workers: int = 1  # processes
    splits: list[str] = field(default_factory=lambda: ["train", "validation"])
    verify: bool = False  # compare what is packed with its SHA-256, and write nothing

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"pack.workers={self.workers} must be at least 1.")
        if not self.splits or set(self.splits) - {"train", "validation"}:
            raise UserError(f"pack.splits={self.splits} must name train, validation or both.")


@dataclass(kw_only=True)
class EvaluateConfig:
    """Closed-loop evaluation of a checkpoint folder (`scripts/evaluate.py`)."""

    checkpoint: str = ask("runs/quickstart_nano/checkpoints/step_1000")
    output_dir: str | None = None  # unset: `evaluation/<sim>` beside the checkpoint
    overwrite: bool = False
    sim: SimConfig | None = None  # unset: that of the training run
    evaluation: EvaluationConfig = MISSING


@dataclass(kw_only=True)
class CollectDemosConfig:
    """Demonstrations without training (`scripts/collect_demos.py`)."""

    root: str = ask("datasets/demos")
    sim: SimConfig = MISSING
    collect: CollectConfig = MISSING


@dataclass(kw_only=True)
class ConvertBackboneConfig:
    """An original checkpoint to be made a folder of ours (`scripts/convert_backbone.py`)."""

    family: str = ask("moondream")  # a backbone's name
    source: str = ask("/path/to/moondream2")
    output_dir: str = ask("checkpoints/moondream")


@dataclass(kw_only=True)
class ConvertDataConfig:
    """A data set to be packed (`scripts/convert_data.py`)."""

    data: DataConfig = MISSING
    view: ViewConfig = MISSING
    pack: PackConfig = field(default_factory=PackConfig)

    def __post_init__(self) -> None:
        check_views(self.view, self.data)
        check_data(self.data)


@dataclass(kw_only=True)
class MergeLoRAConfig:
    """A checkpoint whose adapters are to be merged (`scripts/merge_lora.py`)."""

    checkpoint: str = ask("runs/calvin_perform")
    output_dir: str = ask("runs/calvin_perform_merged")


@dataclass(kw_only=True)
class InspectConfig:
    """A data set to look at (`scripts/inspect_data.py`)."""

    data: DataConfig = MISSING
    view: ViewConfig = MISSING
    window: WindowConfig = MISSING
    output_dir: str = MISSING
    split: Split = Split.train
    episode: int = 0  # number of the episode that gets a page
    max_frames_scanned: int = 5000  # frames that are read; of larger data sets whole episodes, evenly spread
    outlier_iqr: float = 3.0  # interquartile ranges beyond the 1st and 99th percentile that make an outlier
    sheet_episodes: int = 8  # rows of the contact sheet
    sheet_frames: int = 8  # its columns
    max_page_frames: int = 500  # pictures per view of the page; of longer episodes every n-th

    def __post_init__(self) -> None:
        check_window(self.window)
        check_views(self.view, self.data)
        check_data(self.data)
        for key in ("max_frames_scanned", "sheet_episodes", "sheet_frames", "max_page_frames"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)} must be at least 1.")
        if self.outlier_iqr <= 0:
            raise UserError(f"outlier_iqr={self.outlier_iqr} must be above 0.")


@dataclass(kw_only=True)
class CompareConfig:
    """Finished runs side by side (`scripts/compare.py`)."""

    folders: list[str] = field(default=MISSING, metadata={"example": "[runs/structure_grid]"})  # searched for runs
    latency_steps: int = 20  # control steps that are timed
