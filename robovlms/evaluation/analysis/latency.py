"""Success against latency: the same policy when every decision takes so many control steps, by way of execution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypedDict

from robovlms.config.choices import Execution
from robovlms.config.closed_loop import EvaluationConfig
from robovlms.errors import UserError
from robovlms.evaluation.analysis.comparison import score_of
from robovlms.evaluation.episodes import EpisodeResult

STEPWISE = (Execution.first, Execution.ensemble)  # ask at every step, and execute one action of a chunk


class Point(TypedDict):
    """What was reached under one latency."""

    execution: str
    latency: int  # control steps that a decision takes
    mean: float  # success rate, or of chains the average length
    low: float  # 95 % interval
    high: float
    episodes: int


def check_latencies(config: EvaluationConfig, chunk_size: int) -> None:
    """Refuse chunks that have no action left when they arrive.

    Raises:
        UserError: names the option.
    """
    late = {"decision_steps": config.decision_steps, **{f"latency[{i}]": k for i, k in enumerate(config.latency)}}
    for name, steps in late.items():
        if steps > chunk_size:
            raise UserError(
                f"evaluation.{name}={steps} must be at most {chunk_size}, the policy's chunk_size: later than that no "
                "action of a chunk is left to execute."
            )


def measure(
    config: EvaluationConfig,
    executions: Sequence[Execution],
    play: Callable[[EvaluationConfig], Sequence[EpisodeResult]],
) -> list[Point]:
    """Return a point for every way of execution and every latency of `config.latency`.

    Args:
        config: of the evaluation.
        executions: ways of execution.
        play: plays the same episodes under a config.
    """
    points: list[Point] = []
    for execution in executions:
        for latency in dict.fromkeys(config.latency):
            steps = 1 if execution in STEPWISE else config.execute_steps
            played = play(replace(config, execution=execution, execute_steps=steps, decision_steps=latency))
            score = score_of(played)
            points.append(
                {
                    "execution": execution.value,
                    "latency": latency,
                    "mean": score.mean,
                    "low": score.low,
                    "high": score.high,
                    "episodes": len(played),
                }
            )
    return points
