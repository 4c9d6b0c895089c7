"""The schema of a run: what every key means, its type and its default.

YAML files in `configs/` choose values, these dataclasses type them, and `robovlms.cli` turns the composed config into one
`TrainConfig`. Nothing below the entry points knows Hydra, and nothing writes to a config. This module imports no torch.
Enum members are lower-case because OmegaConf matches member names; sequences are `list` because that is what it gives back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Any

from robovlms.registry import nearest

MISSING: Any = "???"  # OmegaConf's mark for "the user must say this"


def ask(example: str) -> Any:
    """Declare a value that only the user knows; the error that asks for it shows `example`."""
    return field(default=MISSING, metadata={"example": example})


class Structure(StrEnum):
    """How history reaches the policy (arXiv:2412.14058, section III)."""

    one_step = auto()  # the newest frame only
    policy_head = auto()  # frames encoded one by one, fused by the head


class ArmLoss(StrEnum):
    """Regression loss of the arm."""

    huber = auto()  # delta 1, what upstream trains with
    mse = auto()  # what the paper writes
    l1 = auto()


class ModelSize(StrEnum):
    """`tiny` keeps a family's architecture with a few hundred thousand random weights, for smoke runs and tests."""

    full = auto()
    tiny = auto()


class NormalizationMode(StrEnum):
    """Which bounds of each arm entry become -1 and +1."""

    bounds = auto()  # the fixed `low` and `high` of the config; actions are clipped to them (RoboVLMs, CALVIN)
    min_max = auto()  # smallest and largest value in the data
    quantile = auto()  # 1st and 99th percentile of the data; actions are clipped to them (OpenVLA)
    identity = auto()  # unchanged


class Resize(StrEnum):
    """Where frames are resized to the vision tower's size."""

    device = auto()  # antialiased bicubic on the accelerator: pixels travel as recorded uint8
    host = auto()  # PIL bicubic in the loader, as the checkpoints' own image processors do


class ScheduleName(StrEnum):
    """Learning rate after the warm-up."""

    constant = auto()
    cosine = auto()


class Precision(StrEnum):
    """Arithmetic of forward and backward; weights and optimizer state stay float32."""

    fp32 = auto()
    bf16 = auto()


class Unit(StrEnum):
    """Unit of a duration: passes over the training windows, or optimizer steps."""

    epoch = auto()
    step = auto()


@dataclass(frozen=True)
class Duration:
    """A length of training such as `0.25 epoch` or `5000 step`; epochs become steps once the data set's size is known."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str, option: str = "duration") -> Duration:
        """Read `<number> epoch` or `<number> step` (a plural s is fine).

        Raises:
            ValueError: anything else; names `option` and both forms.
        """
        match = re.fullmatch(r"\s*([0-9_.eE+]+)\s*([a-z]+?)s?\s*", text)
        units = [unit.value for unit in Unit]
        if match is None or match[2] not in units:
            hint = nearest(match[2], units) if match else ""
            raise ValueError(f"{option}={text!r} is not a duration.{hint} Write e.g. '0.25 epoch' or '5000 step'.")
        try:
            return cls(float(match[1]), Unit(match[2]))
        except ValueError:
            raise ValueError(f"{option}={text!r}: {match[1]!r} is not a number. Write e.g. '0.25 epoch'.") from None

    def steps(self, steps_per_epoch: int) -> int:
        """Give the number of optimizer steps, rounded to the nearest."""
        return round(self.amount * steps_per_epoch) if self.unit is Unit.epoch else round(self.amount)


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
class BackboneConfig:
    """A vision-language model and what of it is trained."""

    name: str = MISSING
    checkpoint: str | None = None  # hub id or local folder
    size: ModelSize = ModelSize.full
    random_init: bool = False  # the checkpoint's architecture and tokenizer, random weights
    prompt: str = "{instruction}"
    max_text_tokens: int = 256
    freeze_vision: bool = False
    freeze_text: bool = False
    freeze_embeddings: bool = False
    gradient_checkpointing: bool = False
    attn_implementation: str = "sdpa"


@dataclass(kw_only=True)
class NanoBackboneConfig(BackboneConfig):
    """Sizes of the embedded few-million-parameter VLM."""

    image_size: int = MISSING  # px, a multiple of 16
    hidden_dim: int = MISSING
    num_layers: int = MISSING
    num_heads: int = MISSING


@dataclass(kw_only=True)
class HeadConfig:
    """Action head: what it is and how its loss is weighed."""

    name: str = MISSING
    num_queries: int = 1  # learned queries per frame
    loss: ArmLoss = ArmLoss.huber
    gripper_weight: float = 0.01  # loss = arm + gripper_weight * gripper (arXiv:2412.14058, lambda)
    hidden_dim: int = 1024


@dataclass(kw_only=True)
class LSTMHeadConfig(HeadConfig):
    """Recurrent policy head."""

    num_layers: int = 4
    dropout: float = 0.0


@dataclass(kw_only=True)
class StructureConfig:
    """Formulation of the policy."""

    name: Structure = MISSING


@dataclass(kw_only=True)
class WindowConfig:
    """History and prediction lengths, in control steps."""

    window_size: int = MISSING
    chunk_size: int = MISSING


@dataclass(kw_only=True)
class ViewConfig:
    """Cameras the policy looks through, by our names; the data config maps them to the data set's keys."""

    views: list[str] = MISSING


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
    resize: Resize = Resize.device
    skip_bad: bool = False  # drop unreadable segments with a counted warning instead of stopping
    num_workers: int = 4  # loader processes per rank; 0 reads in the training process
    fraction: float = 1.0  # leading share of the training segments, evenly thinned


@dataclass(kw_only=True)
class CalvinDataConfig(DataConfig):
    """CALVIN folder (github.com/mees/calvin, dataset/README.md)."""

    root: str = ask("/path/to/task_ABCD_D")
    train_split: str = "training"
    validation_split: str = "validation"
    few_shot_file: str | None = None  # JSON {task: [[start, end], ...]}: only these segments
    train_scenes: str | None = None  # documentation of the split that `root` should hold, e.g. ABC


@dataclass(kw_only=True)
class LeRobotDataConfig(DataConfig):
    """LeRobotDataset v3.0 folder."""

    action_key: str = "action"
    proprio_key: str | None = None
    validation_fraction: float = 0.05  # share of the episodes of every task kept for validation, at least one


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW; weight decay spares biases, norms, embeddings and learned queries."""

    name: str = MISSING
    lr: float = MISSING
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0


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


@dataclass(kw_only=True)
class ClusterConfig:
    """The machine a preset is meant for; `num_processes` 0 accepts any launch."""

    name: str = MISSING
    num_processes: int = 0
    device_batch_size: int = MISSING  # windows per process and micro-step; accumulation is derived


@dataclass(kw_only=True)
class TrackingConfig:
    """Where metrics go besides the console and `metrics.jsonl`."""

    trackers: list[str] = field(default_factory=list)  # of: tensorboard, wandb
    project: str = "robovlms"
    wandb_mode: str = "offline"  # offline needs no account; online; disabled
    progress: bool = True  # progress bar on a terminal


@dataclass(kw_only=True)
class TrainerConfig:
    """The loop: when to log, validate and save, and what to do with an existing run."""

    resume: str = "never"  # never | auto (newest checkpoint of output_dir, or start) | path of a checkpoint folder
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


@dataclass(kw_only=True)
class SimConfig:
    """A simulator and the tasks of its suite."""

    name: str = MISSING
    tasks: list[str] = field(default_factory=list)  # empty: all of the suite
    image_size: int = MISSING  # px, square, every view
    max_steps: int = MISSING  # control steps before an episode counts as failed


@dataclass(kw_only=True)
class CollectConfig:
    """Demonstrations by a simulator's scripted experts."""

    enabled: bool = False  # collect into data.root before training, unless the demonstrations are there
    demos_per_task: int = 20
    noise: float = 0.1  # standard deviation of the noise executed on top of the recorded expert action
    seed: int = 0
    num_workers: int = 2
    video: bool = False  # mp4 instead of PNG embedded in parquet


@dataclass(kw_only=True)
class EvaluationConfig:
    """Closed-loop evaluation of the final checkpoint."""

    enabled: bool = False
    episodes_per_task: int = 10
    seed: int = 10_000  # episode i of a task starts from seed + i
    opposite_episodes_per_task: int = 0  # episodes told the opposite instruction; success there counts against the policy
    execute_steps: int = 1  # actions of a chunk executed before the policy is asked again
    num_workers: int = 1
    videos_per_task: int = 1


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
    sim: SimConfig | None = None
    collect: CollectConfig = MISSING
    evaluation: EvaluationConfig = MISSING

    def __post_init__(self) -> None:
        check_policy(self)
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
    sim: SimConfig = MISSING
    evaluation: EvaluationConfig = MISSING


@dataclass(kw_only=True)
class CollectDemosConfig:
    """Demonstrations without training (`scripts/collect_demos.py`)."""

    root: str = ask("datasets/demos")
    sim: SimConfig = MISSING
    collect: CollectConfig = MISSING


def check_policy(config: TrainConfig) -> None:
    """Refuse combinations of structure, window, head and views that cannot be built.

    Raises:
        ValueError: names the option to change.
    """
    window = config.window
    if window.window_size < 1 or window.chunk_size < 1:
        raise ValueError("window.window_size and window.chunk_size must be at least 1.")
    if config.structure.name is Structure.one_step and window.window_size != 1:
        raise ValueError(
            f"structure=one_step sees one frame, but window.window_size={window.window_size}: "
            "choose window=w1_c10 or structure=policy_head."
        )
    if not config.view.views or len(set(config.view.views)) != len(config.view.views):
        raise ValueError(f"view.views={config.view.views} must name each camera once: choose view=side_wrist or side.")
    for view in config.view.views:
        if view not in config.data.views:
            raise ValueError(
                f"view.views has '{view}', which data={config.data.name} does not map.{nearest(view, config.data.views)} "
                f"It maps {', '.join(config.data.views)}: choose another view= or add data.views.{view}=<key>."
            )
    if unknown := set(config.data.shift) - set(config.data.views):
        raise ValueError(f"data.shift names {sorted(unknown)}, which are not among data.views {list(config.data.views)}.")


# The types of a run's parts, by the place they are stored under `schema/` for YAML files to pull in. An option that has
# fields of its own has an entry of its own; the others share their group's `base`.
SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "collect_demos": CollectDemosConfig,
    "backbone/base": BackboneConfig,
    "backbone/nano": NanoBackboneConfig,
    "head/base": HeadConfig,
    "head/lstm": LSTMHeadConfig,
    "data/base": DataConfig,
    "data/calvin": CalvinDataConfig,
    "data/lerobot": LeRobotDataConfig,
}
