"""One complete run."""

from __future__ import annotations

from dataclasses import dataclass, field

from robovlms.config.checks import check_policy, check_rounding
from robovlms.config.choices import MISSING, CheckpointChoice, Duration, HeadKind, Unit
from robovlms.config.closed_loop import CollectConfig, EvaluationConfig, SimConfig
from robovlms.config.data import (
    DataConfig,
)
from robovlms.config.fields import RUN, Checked, marked, number
from robovlms.config.policy import BackboneConfig, HeadConfig, StructureConfig, ViewConfig, WindowConfig
from robovlms.config.schemas import schema, schema_of
from robovlms.config.training import (
    ClusterConfig,
    CotrainConfig,
    DebugConfig,
    EMAConfig,
    OptimizerConfig,
    ParallelConfig,
    PlannerConfig,
    PrecisionConfig,
    ScheduleConfig,
    TrackingConfig,
    TrainerConfig,
)
from robovlms.errors import NotAllowedError, UserError


@schema("train")
@dataclass(kw_only=True)
class TrainConfig(Checked):
    """One complete run."""

    name: str = marked(keeps=RUN)
    output_dir: str = marked(keeps=RUN)
    seed: int = number(0, at_least=0)
    batch_size: int = number(128, at_least=1)  # global: windows per optimizer step over all processes
    device_batch_size: int = number(at_least=1, keeps=RUN)
    backbone: BackboneConfig = MISSING
    head: HeadConfig = MISSING
    structure: StructureConfig = MISSING
    window: WindowConfig = MISSING
    view: ViewConfig = MISSING
    data: DataConfig = MISSING
    optimizer: OptimizerConfig = marked(keeps=RUN)
    schedule: ScheduleConfig = marked(keeps=RUN)
    precision: PrecisionConfig = marked(keeps=RUN)
    parallel: ParallelConfig = marked(keeps=RUN)
    cluster: ClusterConfig = marked(keeps=RUN)
    planner: PlannerConfig = marked(PlannerConfig, keeps=RUN)
    tracking: TrackingConfig = marked(keeps=RUN)
    trainer: TrainerConfig = marked(keeps=RUN)
    debug: DebugConfig = field(default_factory=DebugConfig)
    cotrain: CotrainConfig | None = marked(None, keeps=RUN)
    ema: EMAConfig | None = marked(None, keeps=RUN)
    sim: SimConfig | None = marked(None, keeps=RUN)
    collect: CollectConfig = marked(keeps=RUN)
    evaluation: EvaluationConfig = marked(keeps=RUN)

    def check(self, _: str) -> None:
        """Refuse groups that do not go together, and names of options whose fields are not there."""
        for group in ("backbone", "head", "data", "sim", "parallel"):
            part = getattr(self, group)
            if part is not None and schema_of(group, part.name) is not type(part):
                raise UserError(f"{group}.name={part.name}: choose {group}={part.name}, which brings its options.")
        check_policy(self.structure, self.head, self.window, self.view, self.data)
        if self.cotrain is not None and self.head.kind is HeadKind.slots:
            raise NotAllowedError(
                "cotrain with head.parallel=true is not allowed: queries that see each other would tell the words of "
                "an answer before they are predicted. Set head.parallel=false, or cotrain=null."
            )
        if self.batch_size % self.device_batch_size:
            raise UserError(
                f"batch_size={self.batch_size} is not a multiple of device_batch_size={self.device_batch_size}: "
                f"change one of them."
            )
        check_rounding(self.optimizer, self.precision, self.ema, self.parallel)
        self._check_evaluation()

    def _check_evaluation(self) -> None:
        evaluates = self.evaluation.enabled or self.evaluation.during_training
        if (self.collect.enabled or evaluates) and self.sim is None:
            raise UserError(
                "collect.enabled, evaluation.enabled and evaluation.during_training need a simulator: choose one, e.g. "
                "sim=metaworld."
            )
        if evaluates and self.evaluation.execute_steps > self.window.chunk_size:
            raise UserError(
                f"evaluation.execute_steps={self.evaluation.execute_steps} must be at most window.chunk_size="
                f"{self.window.chunk_size}: a chunk has no more actions."
            )
        save, choice = (
            Duration.parse(self.trainer.save_every),
            CheckpointChoice.parse(self.evaluation.checkpoints or "last"),
        )
        if choice.every and choice.every > 1 and save.unit is Unit.step and choice.every % save.amount:
            raise UserError(
                f"evaluation.checkpoints={self.evaluation.checkpoints} asks for checkpoints that trainer.save_every="
                f"{self.trainer.save_every} does not write: make one a multiple of the other."
            )
