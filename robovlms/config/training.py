"""How it is trained: optimizer, schedule, machine, trackers, the loop, and conversations beside the robot's data."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum, auto

from robovlms.config.choices import (
    MISSING,
    CompileMode,
    Duration,
    GpuName,
    Moments,
    Precision,
    ReduceDtype,
    ScheduleName,
    TrackerName,
    WandbMode,
)
from robovlms.config.fields import MAX_PROCESSES, RUN, ask, number, template
from robovlms.config.schemas import schema
from robovlms.errors import UserError

MANY = 1e9  # epochs or steps


class Rounding(StrEnum):
    """How the bfloat16 weights of `precision=bf16` take steps that are smaller than their digits."""

    masters = auto()  # float32 copies take them, 4 bytes a trained weight
    nearest = auto()  # not at all: what is below 0.2 % of a weight is lost
    stochastic = auto()  # on average: rounded up or down at random, so that the mean is exact
    kahan = auto()  # later: what rounding left over is kept in bfloat16, 2 bytes, and added to the next step


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW; weight decay spares biases, norms, embeddings and learned queries."""

    name: str = MISSING
    lr: float = number(above=0, at_most=1)
    betas: list[float] = number(lambda: [0.9, 0.999], at_least=0, below=1)
    eps: float = number(1e-8, above=0, at_most=1)
    weight_decay: float = number(0.0, at_least=0, at_most=10)
    max_grad_norm: float | None = number(1.0, above=0, hint="null turns clipping off")
    moments: Moments = Moments.fp32
    rounding: Rounding = Rounding.masters  # of trained bfloat16 weights; other than masters: precision=bf16 alone

    def check(self, option: str) -> None:
        """Refuse other than two betas."""
        if len(self.betas) != 2:
            raise UserError(f"{option}.betas={self.betas} must be two numbers, e.g. [0.9,0.999].")


@dataclass(kw_only=True)
class ScheduleConfig:
    """Length of the run and shape of the learning rate; durations are `<number> epoch` or `<number> step`."""

    name: ScheduleName = ScheduleName.constant
    warmup: str = number(at_least=0, at_most=MANY)
    total: str = number(above=0, at_most=MANY)
    min_lr_ratio: float = number(0.0, at_least=0, at_most=1)  # of the peak, at the end of a cosine

    def check(self, option: str) -> None:
        """Refuse a warm-up that outlasts the run, where both have one unit; others are known with the data's size."""
        warmup, total = Duration.parse(self.warmup), Duration.parse(self.total)
        if warmup.unit is total.unit and warmup.amount > total.amount:
            raise UserError(
                f"{option}.warmup={self.warmup} is longer than {option}.total={self.total}, so the learning rate would "
                f"never reach optimizer.lr: shorten it, e.g. '{option}.warmup=0 step'."
            )


@dataclass(kw_only=True)
class PrecisionConfig:
    """Arithmetic of the run."""

    name: Precision = MISSING
    tf32: bool = True  # float32 matrix products on tensor cores, where there are any


@schema("parallel/base")
@dataclass(kw_only=True)
class ParallelConfig:
    """How a step is spread over processes."""

    name: str = MISSING
    reduce_dtype: ReduceDtype = ReduceDtype.fp32
    timeout_s: int = number(1800, at_least=1)  # that a process waits for the others before it gives up

    @property
    def shares_weights(self) -> bool:
        """Tell whether every process keeps a part of the weights, in float32."""
        return False


@dataclass(kw_only=True)
class ClusterConfig:
    """The machine a preset is meant for; `num_processes` 0 accepts any launch."""

    name: str = MISSING
    num_processes: int = number(0, at_least=0)
    gpu: GpuName | None = None  # that a run is planned for where there is none; unset: this machine's memory counts
    gpus_per_node: int = number(8, at_least=1)
    device_batch_size: int = number(at_least=1)  # windows per process and micro-step; accumulation is derived

    def check_launch(self, num_processes: int) -> None:
        """Refuse a launch of another size.

        Raises:
            UserError: names both counts.
        """
        if self.num_processes not in (0, num_processes):
            raise UserError(
                f"cluster={self.name} means {self.num_processes} processes, but {num_processes} were launched: launch "
                "with torchrun --nnodes ... --nproc-per-node ..., or choose cluster=local."
            )


@dataclass(kw_only=True)
class PlannerConfig:
    """What a run is held against before it starts, and what `scripts/plan.py` is asked."""

    enabled: bool = True  # refuse to start a run that cannot fit
    margin: float = number(0.1, at_least=0, below=1)  # share of a GPU's memory that is not planned with
    windows: int | None = number(None, at_least=1)  # of the data set, for hours; unset: only of schedules in steps
    price: float | None = number(None, at_least=0)  # of a GPU hour, in any currency


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
    overwrite: bool = False  # start again; what a run of ours wrote is deleted after the first checkpoint
    log_every: str = number("10 step", above=0, at_most=MANY)
    validate_every: str | None = number("1 epoch", above=0, at_most=MANY, hint="null trains without validation")
    save_every: str = number("1 epoch", above=0, at_most=MANY)
    max_validation_batches: int | None = number(
        100, at_least=1, hint="null reads them all, trainer.validate_every=null trains without validation"
    )
    # whether validation looks for what a policy may not have learned (language, pictures, a gripper), and warns of it
    early_warnings: bool = True
    # validation episodes of every source on the open-loop page of the last checkpoint; 0: no page
    open_loop_episodes: int = number(3, at_least=0, at_most=100)
    # newest checkpoints kept; the last one of a run always is
    keep_last: int = number(2, at_least=1, hint="to keep all, give a number larger than there will be")
    async_save: bool = True  # training goes on while a checkpoint is written, from a copy in the host's memory
    compile: CompileMode = CompileMode.off
    num_threads: int | None = number(None, at_least=1, at_most=4096)  # CPU threads of torch; unset leaves its default

    def check(self, option: str) -> None:
        """Refuse yes and no where a choice of three is asked for."""
        if self.resume.lower() in ("true", "false", "yes", "no", "on", "off", "1", "0", ""):
            raise UserError(
                f"{option}.resume={self.resume.lower()}: write auto for the newest checkpoint of output_dir, never, or "
                "the path of a checkpoint folder."
            )
        if self.overwrite and self.resume != "never":
            raise UserError(
                f"{option}.overwrite=true with {option}.resume={self.resume} would delete what is to be resumed: give "
                "one of them."
            )


@dataclass(kw_only=True)
class EMAConfig:
    """A moving average of the trained weights, kept beside them in float32 and in every checkpoint."""

    name: str = MISSING
    decay: float = number(0.999, at_least=0, below=1, hint="ema=null trains without an average")
    warmup: bool = True  # the decay of step t is at most (1 + t) / (10 + t)
    validate: bool = True  # validation measures the average instead of the newest weights


@dataclass(kw_only=True)
class DebugConfig:
    """Short runs that show whether a policy learns at all, or where the time goes."""

    overfit: bool = False  # every step takes the first batch: the loss must fall to almost nothing
    # optimizer steps whose torch profiler trace is written to `profile/` of the run folder; 0 = none
    profile_steps: int = number(0, at_least=0, keeps=RUN)


@dataclass(kw_only=True)
class CotrainConfig:
    """Conversations in LLaVA's format, so that a VLM that learns to act keeps what it knew.

    loss = action loss + weight * cross-entropy of the answers' tokens.
    """

    name: str = MISSING
    file: str = ask("/path/to/llava_v1_5_mix665k.json")  # JSON array or JSON lines
    image_folder: str = ask("/path/to/images")  # that the file's image paths start from
    batch_size: int = number(16, at_least=1)  # global: conversations per optimizer step over all processes
    # arXiv:2412.14058's code, vl_cotrain_ratio
    weight: float = number(0.05, above=0, at_most=1e6, hint="cotrain=null turns it off")
    question: str = template("Question: {text} Answer:", "text")  # how the family writes what a human says
    answer: str = template(" {text}", "text")  # and what it says itself; its end token follows
    max_tokens: int = number(512, at_least=1)  # longer conversations are cut
    skip_bad: bool = False  # leave out records that cannot be used, counted, instead of stopping
    # loader processes per rank; 0 reads in the training process
    num_workers: int = number(2, at_least=0, at_most=MAX_PROCESSES)
