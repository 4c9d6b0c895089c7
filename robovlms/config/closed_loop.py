"""How it acts: simulators, demonstrations, evaluation and the wire to a robot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from robovlms.config.choices import (
    MISSING,
    ActingWeights,
    CheckpointChoice,
    CompileMode,
    EngineDtype,
    Execution,
    Language,
    Quantization,
    Split,
)
from robovlms.config.fields import DEMO, MAX_PORT, MAX_PROCESSES, Checked, ask, marked, number
from robovlms.config.schemas import schema
from robovlms.errors import UserError


@schema("sim/base")
@dataclass(kw_only=True)
class SimConfig:
    """A simulator, the tasks of its suite, and what an evaluation plays of them."""

    name: str = MISSING
    tasks: list[str] = marked(list, keeps=DEMO)  # empty: all of the suite
    episodes: int = number(at_least=1, keeps=DEMO)  # of every task; where an episode is a chain of tasks, in all
    seed: int = number(0, at_least=0, keeps=DEMO)  # of the first episode, or its number among the benchmark's own
    max_steps: int | None = number(None, at_least=1)  # actions that a goal may take; unset: the benchmark's own limit


@schema("protocol/base")
@dataclass(kw_only=True)
class ProtocolConfig:
    """A wire protocol, and what its clients call what the policy sees and says."""

    takes_chunks: ClassVar[bool] = True  # whether clients execute chunks; else they take one action an answer

    name: str = MISSING
    port: int = number(at_least=0, at_most=MAX_PORT)  # where its clients look for a server
    # clients' names of cameras, by ours; several with | between them: the first that is there
    views: dict[str, str] = field(default_factory=dict)
    # entries of the clients' proprioception, in their order; empty: those that the policy was trained with
    proprio_names: list[str] = field(default_factory=list)
    gripper_closed: float = number(-1.0)  # what clients mean by these; policies speak -1 and +1
    gripper_open: float = number(1.0)

    def check(self, option: str) -> None:
        """Refuse a gripper of which nobody could tell what it does."""
        if self.gripper_closed == self.gripper_open:
            raise UserError(f"{option}.gripper_closed and {option}.gripper_open are equal: say which value means what.")


@dataclass(kw_only=True)
class CollectConfig:
    """Demonstrations by a simulator's scripted experts."""

    enabled: bool = False  # collect into data.root before training, unless the demonstrations are there
    demos_per_task: int = number(20, at_least=1, keeps=DEMO)
    contrast_tasks: list[str] = marked(list, keeps=DEMO)  # in their scene the opposite is told and acted as well
    contrast_demos_per_task: int = number(20, at_least=0, keeps=DEMO)
    max_start_steps: int = number(0, at_least=0)  # in a random direction before recording starts
    # standard deviation of the noise executed on top of the recorded expert action
    noise: float = number(0.1, at_least=0, at_most=10)
    seed: int = number(0, at_least=0)
    num_workers: int = number(2, at_least=1, at_most=MAX_PROCESSES)
    video: bool = marked(False, keeps=DEMO)  # mp4 instead of PNG embedded in parquet


@dataclass(kw_only=True)
class EngineConfig:
    """How a policy that acts computes, for many sessions at once."""

    device: str = "auto"  # as torch calls it, e.g. cuda:1; auto: a GPU if there is one
    weights: ActingWeights = ActingWeights.trained
    dtype: EngineDtype = EngineDtype.auto  # auto: bf16 on a GPU, fp32 elsewhere
    max_batch_size: int = number(32, at_least=1, at_most=4096)  # rows in one forward
    max_wait_ms: float = number(2.0, at_least=0, at_most=10_000)  # that a request waits for others to share a forward
    compile: CompileMode = CompileMode.off
    cuda_graph: bool = False  # launch what it computes as CUDA graphs
    quantize: Quantization | None = None  # the backbone's matrices, which are not computed with but stored so
    # that `quantize` may make, at most, in normalised units (the arm's range is 2, and so is a gripper that changes its
    # mind), for synthetic observations; unset: any
    max_action_change: float | None = number(None, above=0, at_most=2)

    def check(self, option: str) -> None:
        """Refuse a bound on what is not done, and graphs of graphs."""
        if self.cuda_graph and self.compile is CompileMode.model:
            raise UserError(
                f"{option}.cuda_graph=true with {option}.compile=model is not allowed, which captures the vision tower "
                f"itself: set {option}.compile=layers or off, or leave {option}.cuda_graph out."
            )
        if self.max_action_change is not None and self.quantize is None:
            raise UserError(
                f"{option}.max_action_change={self.max_action_change} bounds what {option}.quantize changes: set "
                f"{option}.quantize=int8, or leave it out."
            )


@dataclass(kw_only=True)
class EvaluationConfig:
    """Closed-loop evaluation; what is played says `sim`."""

    enabled: bool = False  # after training
    # while training goes on, every checkpoint as it appears, in a process of its own that training does not wait for
    during_training: bool = False
    # of a run: last | all | every:<steps>; unset: what the run was trained with, else last
    checkpoints: str | None = None
    language: list[Language] = field(default_factory=list)  # also played with instructions changed in these ways
    language_episodes: int = number(10, at_least=1)  # of every task and way, the first of those it has
    execution: Execution = Execution.chunk
    execute_steps: int = number(1, at_least=1)  # actions of a chunk executed before the policy is asked again
    decision_steps: int = number(0, at_least=0)  # control steps that a decision takes, while the last chunk goes on
    latency: list[int] = number(list, at_least=0)  # decision_steps that success is also measured with, for a figure
    executions: list[Execution] = field(default_factory=list)  # those measured so; empty: all that the head can do
    shuffle: bool = False  # play in a random order, so that what has been played at any time speaks of all tasks
    num_workers: int = number(1, at_least=1, at_most=MAX_PROCESSES)
    engine: EngineConfig = field(default_factory=EngineConfig)
    videos_per_task: int = number(1, at_least=0)
    source: str | None = None  # of a mixture: whose actions the policy gives; a policy of one data set needs none

    def check(self, option: str) -> None:
        """Refuse a choice of checkpoints that cannot be read."""
        if self.checkpoints is not None:
            CheckpointChoice.parse(self.checkpoints, f"{option}.checkpoints")


@dataclass(kw_only=True)
class MovedDataConfig:
    """Where data lies that was elsewhere when a policy was trained on it."""

    root: str | None = None  # unset: where it was; of a mixture, the folder that its sources lie below


@schema("open_loop")
@dataclass(kw_only=True)
class OpenLoopConfig(Checked):
    """Recorded episodes, and what a checkpoint would have done in them (`scripts/open_loop.py`)."""

    checkpoint: str = ask("runs/quickstart_nano")
    checkpoints: str = "last"  # of a run: last | all | every:<steps>
    watch: bool = False  # follow a run that still trains: a page of its checkpoints as they appear, until it has ended
    data: MovedDataConfig = field(default_factory=MovedDataConfig)
    split: Split = Split.validation
    source: str | None = None  # of a mixture; unset: every one has episodes on the page
    episodes: int = number(3, at_least=1, at_most=100)  # of every source, evenly spread
    max_steps: int = number(500, at_least=1, at_most=100_000)  # of an episode, from its beginning
    pictures: int = number(6, at_least=1, at_most=24)  # moments of an episode that are shown
    execution: Execution | None = None  # as in `evaluation`; unset: as the run was trained to be evaluated
    execute_steps: int | None = number(None, at_least=1)  # likewise
    engine: EngineConfig = field(default_factory=EngineConfig)
    output_dir: str | None = None  # of the pages; unset: `open_loop` in the run folder

    def check(self, _: str) -> None:
        """Refuse a choice of checkpoints that cannot be read or made."""
        choice = CheckpointChoice.parse(self.checkpoints)
        if self.watch and choice.every is None:
            raise UserError(
                "watch=true writes pages of checkpoints as they appear, and checkpoints=last is known at the end "
                "alone: give checkpoints=all or e.g. every:10000, or leave watch out."
            )
