"""How it acts: simulators, demonstrations and evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from robovlms.config.choices import MISSING, Execution


@dataclass(kw_only=True)
class SimConfig:
    """A simulator and the tasks of its suite."""

    name: str = MISSING
    tasks: list[str] = field(default_factory=list)  # empty: all of the suite
    image_size: int = MISSING  # px, square, every view
    control_hz: float = MISSING  # actions per second
    max_steps: int = MISSING  # actions before an episode counts as failed


@dataclass(kw_only=True)
class CollectConfig:
    """Demonstrations by a simulator's scripted experts."""

    enabled: bool = False  # collect into data.root before training, unless the demonstrations are there
    demos_per_task: int = 20
    contrast_tasks: list[str] = field(default_factory=list)  # in their scene the opposite is told and acted as well
    contrast_demos_per_task: int = 20
    max_start_steps: int = 0  # in a random direction before recording starts
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
    opposite_episodes_per_task: int = (
        0  # episodes told the opposite instruction; success there counts against the policy
    )
    execution: Execution = Execution.chunk
    execute_steps: int = 1  # actions of a chunk executed before the policy is asked again
    num_workers: int = 1
    videos_per_task: int = 1
    source: str | None = None  # of a mixture: whose actions the policy gives; a policy of one data set needs none
