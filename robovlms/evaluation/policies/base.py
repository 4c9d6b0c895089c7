"""What acts in an evaluation, whatever runs the policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from robovlms.config.choices import Execution
from robovlms.config.closed_loop import EvaluationConfig
from robovlms.evaluation.analysis.certificate import PolicyIdentity
from robovlms.evaluation.rollout import Policy
from robovlms.sims.base import Simulator
from robovlms.workers import Answerer


@runtime_checkable
class ActingPolicy(Protocol):
    """The policy that an evaluation is of: a checkpoint's, or one behind a server."""

    @property
    def identity(self) -> PolicyIdentity:
        """What results say of it."""

    def conditions(self, config: EvaluationConfig) -> dict[str, Any]:
        """Return what results depend on besides episodes, simulator and execution: JSON values."""

    def check(self, simulator: Simulator, config: EvaluationConfig) -> None:
        """Refuse a simulator that it does not fit, and what it cannot do, before anything is played.

        Raises:
            UserError: lists both sides of every disagreement.
        """

    def ways(self, config: EvaluationConfig) -> list[Execution]:
        """Return the ways of execution that success against latency is measured for."""

    def start(self, config: EvaluationConfig, simulator: Simulator) -> Policy:
        """Return what acts in one simulator, in its process."""

    def answerer(self, config: EvaluationConfig, instructions: Sequence[str]) -> Callable[[], Answerer] | None:
        """Return what builds what all processes ask in this one; None: they ask nobody here."""
