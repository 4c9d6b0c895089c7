"""One complete run."""

from __future__ import annotations

from dataclasses import dataclass, field

from robovlms.config.checks import check_policy
from robovlms.config.choices import MISSING, HeadKind
from robovlms.config.closed_loop import CollectConfig, EvaluationConfig, SimConfig
from robovlms.config.cotrain import CotrainConfig
from robovlms.config.data import (
    DataConfig,
)
from robovlms.config.policy import BackboneConfig, HeadConfig, StructureConfig, ViewConfig, WindowConfig
from robovlms.config.training import (
    ClusterConfig,
    DebugConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    ScheduleConfig,
    TrackingConfig,
    TrainerConfig,
)
from robovlms.errors import NotAllowedError, UserError


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
    debug: DebugConfig = field(default_factory=DebugConfig)
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
                raise UserError(f"{key}={getattr(self, key)} must be at least 1.")
        if self.batch_size % self.device_batch_size:
            raise UserError(
                f"batch_size={self.batch_size} is not a multiple of device_batch_size={self.device_batch_size}: "
                f"change one of them."
            )
        if (self.collect.enabled or self.evaluation.enabled) and self.sim is None:
            raise UserError("collect.enabled and evaluation.enabled need a simulator: choose one, e.g. sim=metaworld.")
