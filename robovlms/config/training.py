"""How it is trained: optimizer, schedule, machine, trackers and the loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from robovlms.config.choices import MISSING, Duration, Precision, ScheduleName, TrackerName, WandbMode
from robovlms.errors import UserError
from robovlms.registry import nearest

OPTIMIZERS, PARALLEL = ("adamw",), ("ddp",)  # that there is code for


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW; weight decay spares biases, norms, embeddings and learned queries."""

    name: str = MISSING
    lr: float = MISSING
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        _check_implemented("optimizer", self.name, OPTIMIZERS)


@dataclass(kw_only=True)
class ScheduleConfig:
    """Length of the run and shape of the learning rate; durations are `<number> epoch` or `<number> step`."""

    name: ScheduleName = ScheduleName.constant
    warmup: str = MISSING
    total: str = MISSING
    min_lr_ratio: float = 0.0  # of the peak, at the end of a cosine

    def __post_init__(self) -> None:
        for key in ("warmup", "total"):
            Duration.parse(getattr(self, key), f"schedule.{key}")


@dataclass(kw_only=True)
class PrecisionConfig:
    """Arithmetic of the run."""

    name: Precision = MISSING
    tf32: bool = True  # float32 matrix products on tensor cores, where there are any


@dataclass(kw_only=True)
class ParallelConfig:
    """How a step is spread over processes."""

    name: str = MISSING
    bucket_cap_mb: int = 25
    gradient_as_bucket_view: bool = True
    timeout_s: int = 1800  # that a process waits for the others before it gives up

    def __post_init__(self) -> None:
        _check_implemented("parallel", self.name, PARALLEL)
        if self.timeout_s < 1:
            raise UserError(f"parallel.timeout_s={self.timeout_s} must be at least 1 (seconds).")


@dataclass(kw_only=True)
class ClusterConfig:
    """The machine a preset is meant for; `num_processes` 0 accepts any launch."""

    name: str = MISSING
    num_processes: int = 0
    device_batch_size: int = MISSING  # windows per process and micro-step; accumulation is derived


@dataclass(kw_only=True)
class TrackingConfig:
    """Where metrics go besides the console and `metrics.jsonl`."""

    trackers: list[TrackerName] = field(default_factory=list)
    project: str = "robovlms"
    wandb_mode: WandbMode = WandbMode.offline
    progress: bool = True  # progress bar on a terminal


@dataclass(kw_only=True)
class TrainerConfig:
    """The loop: when to log, validate and save, and what to do with an existing run."""

    resume: str = "never"  # never | auto (newest checkpoint of output_dir, or start) | path of a checkpoint folder
    init_from: str | None = None  # run or checkpoint whose weights are started from: pre-train, then fine-tune
    overwrite: bool = False  # delete an existing output_dir first
    log_every: str = "10 step"
    validate_every: str = "1 epoch"
    save_every: str = "1 epoch"
    max_validation_batches: int | None = 100
    keep_last: int = 2  # newest checkpoints kept; the last one of a run always is
    num_threads: int | None = None  # CPU threads of torch; unset leaves its default

    def __post_init__(self) -> None:
        for key in ("log_every", "validate_every", "save_every"):
            Duration.parse(getattr(self, key), f"trainer.{key}")
        if self.overwrite and self.resume != "never":
            raise UserError(
                f"trainer.overwrite=true with trainer.resume={self.resume} would delete what is to be resumed: give "
                "one of them."
            )


@dataclass(kw_only=True)
class DebugConfig:
    """Short runs that show whether a policy learns at all, or where the time goes."""

    overfit: bool = False  # every step takes the first batch: the loss must fall to almost nothing
    profile_steps: int = 0  # optimizer steps whose torch profiler trace is written to `profile/` of the run folder

    def __post_init__(self) -> None:
        if self.profile_steps < 0:
            raise UserError(f"debug.profile_steps={self.profile_steps} must be at least 0 (no profile).")


def _check_implemented(group: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UserError(f"{group}.name={name} does not exist.{nearest(name, list(known))} Choose {group}={known[0]}.")
