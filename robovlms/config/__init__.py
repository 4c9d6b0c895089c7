"""The schema of a run: what every key means, its type and its default.

YAML files in `configs/` choose values, these dataclasses type them, and `robovlms.cli` turns the composed config into
one `TrainConfig`. Below the entry points nobody knows Hydra, nobody writes to a config, and nothing here imports torch.
Sequences are `list` because that is what OmegaConf gives back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from robovlms.choices import MISSING, HeadKind, Split, ask
from robovlms.config.allowed import NotAllowedError, check_structure
from robovlms.config.closed_loop import CollectConfig, EvaluationConfig, SimConfig
from robovlms.config.cotrain import CotrainConfig
from robovlms.config.data import (
    ActionContract,
    AugmentationConfig,
    CalvinDataConfig,
    ConvertConfig,
    DataConfig,
    LeRobotDataConfig,
    LiberoDataConfig,
    MixtureDataConfig,
    NormalizationConfig,
    PackConfig,
    RLDSDataConfig,
    check_augmentation,
    check_mixture,
)
from robovlms.config.policy import (
    BackboneConfig,
    DenoisingHeadConfig,
    DiffusionHeadConfig,
    FastHeadConfig,
    FlowHeadConfig,
    GPTHeadConfig,
    HeadConfig,
    LoRAConfig,
    LSTMHeadConfig,
    MLPHeadConfig,
    NanoBackboneConfig,
    StructureConfig,
    TokensHeadConfig,
    ViewConfig,
    WindowConfig,
)
from robovlms.config.training import (
    ClusterConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    ScheduleConfig,
    TrackingConfig,
    TrainerConfig,
)
from robovlms.registry import nearest

__all__ = [
    "ActionContract",
    "AugmentationConfig",
    "BackboneConfig",
    "CalvinDataConfig",
    "ClusterConfig",
    "CollectConfig",
    "CollectDemosConfig",
    "ConvertBackboneConfig",
    "ConvertConfig",
    "ConvertDataConfig",
    "CotrainConfig",
    "DataConfig",
    "CompareConfig",
    "DenoisingHeadConfig",
    "DiffusionHeadConfig",
    "EvaluateConfig",
    "FastHeadConfig",
    "EvaluationConfig",
    "FlowHeadConfig",
    "GPTHeadConfig",
    "HeadConfig",
    "LoRAConfig",
    "LSTMHeadConfig",
    "MergeLoRAConfig",
    "InspectConfig",
    "LeRobotDataConfig",
    "LiberoDataConfig",
    "MLPHeadConfig",
    "MixtureDataConfig",
    "NanoBackboneConfig",
    "NormalizationConfig",
    "OptimizerConfig",
    "PackConfig",
    "ParallelConfig",
    "PrecisionConfig",
    "RLDSDataConfig",
    "SCHEMAS",
    "ScheduleConfig",
    "SimConfig",
    "StructureConfig",
    "TokensHeadConfig",
    "TrackingConfig",
    "TrainConfig",
    "TrainerConfig",
    "ViewConfig",
    "WindowConfig",
    "check_policy",
]


@dataclass(kw_only=True)
class TrainConfig:
    """One complete run."""

    name: str = MISSING
    output_dir: str = MISSING
    seed: int = 0
    batch_size: int = 128  # global: windows per optimizer step over all processes
    device_batch_size: int = MISSING
    backbone: BackboneConfig = MISSING
    head: HeadConfig = MISSING
    structure: StructureConfig = MISSING
    window: WindowConfig = MISSING
    view: ViewConfig = MISSING
    data: DataConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    schedule: ScheduleConfig = MISSING
    precision: PrecisionConfig = MISSING
    parallel: ParallelConfig = MISSING
    cluster: ClusterConfig = MISSING
    tracking: TrackingConfig = MISSING
    trainer: TrainerConfig = MISSING
    cotrain: CotrainConfig | None = None
    sim: SimConfig | None = None
    collect: CollectConfig = MISSING
    evaluation: EvaluationConfig = MISSING

    def __post_init__(self) -> None:
        check_policy(self.structure, self.head, self.window, self.view, self.data)
        if self.cotrain is not None and self.head.kind is HeadKind.slots:
            raise NotAllowedError(
                "cotrain with head.parallel=true is not allowed: queries that see each other would tell the words of "
                "an answer before they are predicted. Set head.parallel=false, or cotrain=null."
            )
        for key in ("batch_size", "device_batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1.")
        if self.batch_size % self.device_batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of device_batch_size={self.device_batch_size}: "
                f"change one of them."
            )
        if (self.collect.enabled or self.evaluation.enabled) and self.sim is None:
            raise ValueError("collect.enabled and evaluation.enabled need a simulator: choose one, e.g. sim=metaworld.")


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
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1.")
        if self.outlier_iqr <= 0:
            raise ValueError(f"outlier_iqr={self.outlier_iqr} must be above 0.")


def check_policy(
    structure: StructureConfig, head: HeadConfig, window: WindowConfig, view: ViewConfig, data: DataConfig
) -> None:
    """Refuse combinations that cannot be built.

    Raises:
        ValueError: names the option to change.
    """
    check_window(window)
    check_structure(structure, head, window)
    check_views(view, data)
    check_data(data)


def check_window(window: WindowConfig) -> None:
    """Refuse a window without a frame or an action."""
    if window.window_size < 1 or window.chunk_size < 1:
        raise ValueError("window.window_size and window.chunk_size must be at least 1.")


def check_views(view: ViewConfig, data: DataConfig) -> None:
    """Refuse cameras that the data config does not map, or that are named twice."""
    if not view.views or len(set(view.views)) != len(view.views):
        raise ValueError(f"view.views={view.views} must name each camera once: choose view=side_wrist or side.")
    for name in view.views:
        if name not in data.view_names:
            raise ValueError(
                f"view.views has '{name}', which the data config does not map.{nearest(name, data.view_names)} "
                f"It maps {', '.join(data.view_names)}: choose another view=, or map it with +data.views.{name}=<key>."
            )


def check_data(data: DataConfig) -> None:
    """Refuse a data set that contradicts itself.

    Raises:
        ValueError: names the option to change.
    """
    is_mixture = isinstance(data, MixtureDataConfig)
    if not is_mixture and (data.proprio_key is None) == bool(data.proprio_names):
        raise ValueError(
            f"data.proprio_key={data.proprio_key} and data.proprio_names={data.proprio_names} belong together: "
            "give the data set's key and a name for each of its entries, or neither."
        )
    if unknown := set(data.seen_names) - set(data.proprio_names):
        raise ValueError(f"data.proprio_seen has {sorted(unknown)}, not among data.proprio_names={data.proprio_names}.")
    check_augmentation(data)
    if isinstance(data, MixtureDataConfig):
        check_mixture(data)
        for name, part in data.parts.items():
            try:
                check_data(part)
            except ValueError as error:
                raise ValueError(f"data.parts.{name}: {error}") from error


@dataclass(kw_only=True)
class CompareConfig:
    """Finished runs side by side (`scripts/compare.py`)."""

    folders: list[str] = field(default=MISSING, metadata={"example": "[runs/structure_grid]"})  # searched for runs
    latency_steps: int = 20  # control steps that are timed


# The types of a run's parts, by the place they are stored under `schema/` for YAML files to pull in. An option that has
# fields of its own has an entry of its own; the others share their group's `base`.
SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "collect_demos": CollectDemosConfig,
    "convert_backbone": ConvertBackboneConfig,
    "convert_data": ConvertDataConfig,
    "compare": CompareConfig,
    "merge_lora": MergeLoRAConfig,
    "inspect_data": InspectConfig,
    "backbone/base": BackboneConfig,
    "backbone/nano": NanoBackboneConfig,
    "head/base": HeadConfig,
    "head/diffusion": DiffusionHeadConfig,
    "head/fast": FastHeadConfig,
    "head/flow": FlowHeadConfig,
    "head/tokens": TokensHeadConfig,
    "head/gpt": GPTHeadConfig,
    "head/lstm": LSTMHeadConfig,
    "head/mlp": MLPHeadConfig,
    "data/base": DataConfig,
    "data/calvin": CalvinDataConfig,
    "data/lerobot": LeRobotDataConfig,
    "data/libero": LiberoDataConfig,
    "data/mixture": MixtureDataConfig,
    "data/rlds": RLDSDataConfig,
}
