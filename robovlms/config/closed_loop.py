"""How it acts: simulators, demonstrations and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.choices import MISSING, Execution
from robovlms.config.fields import DEMO, MAX_PROCESSES, marked, number
from robovlms.config.schemas import schema


@schema("sim/base")
@dataclass(kw_only=True)
class SimConfig:
    """A simulator and the tasks of its suite."""

    name: str = MISSING
    tasks: list[str] = marked(list, keeps=DEMO)  # empty: all of the suite
    image_size: int = number(at_least=1, at_most=8192)  # px, square, every view
    control_hz: float = number(above=0, at_most=10_000)  # actions per second
    max_steps: int = number(at_least=1)  # actions before an episode counts as failed


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
class EvaluationConfig:
    """Closed-loop evaluation of the final checkpoint."""

    enabled: bool = False
    episodes_per_task: int = number(10, at_least=1)
    seed: int = number(10_000, at_least=0)  # episode i of a task starts from seed + i
    opposite_episodes_per_task: int = number(0, at_least=0)  # opposite instruction; success counts against it
    execution: Execution = Execution.chunk
    execute_steps: int = number(1, at_least=1)  # actions of a chunk executed before the policy is asked again
    num_workers: int = number(1, at_least=1, at_most=MAX_PROCESSES)
    videos_per_task: int = number(1, at_least=0)
    source: str | None = None  # of a mixture: whose actions the policy gives; a policy of one data set needs none
