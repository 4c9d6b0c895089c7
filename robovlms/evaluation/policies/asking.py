"""Processes that play ask one engine, which answers them together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from robovlms.config.closed_loop import EngineConfig
from robovlms.policy.engine import PolicyEngine
from robovlms.policy.sessions import Session
from robovlms.types import Observation
from robovlms.workers import ask


class AskingPolicy:
    """The policy of a process that plays: it asks the engine of the process that it belongs to, and holds no model.

    Args:
        views: that the engine's policy looks through; others are not sent.
        entries: of an observation's proprioception, those that it was trained with.
    """

    def __init__(self, views: Collection[str], entries: Sequence[int]) -> None:
        self._views, self._entries = views, list(entries)
        self._begins = True

    def reset(self) -> None:
        """Forget the episode so far."""
        self._begins = True

    def step(self, observation: Observation) -> Float32[np.ndarray, "a"]:
        """Return the next action, in environment units."""
        frames = {view: frame for view, frame in observation.frames.items() if view in self._views}
        proprio = observation.proprio[self._entries] if self._entries else None
        begins, self._begins = self._begins, False
        action: Float32[np.ndarray, "a"] = ask((begins, replace(observation, frames=frames, proprio=proprio)))
        return action

    def close(self) -> None:
        """Leave the engine, which knows processes and not policies."""


class SharedEngine:
    """Answers `AskingPolicy` of all processes, each with a session of its own."""

    def __init__(self, engine: PolicyEngine, open_session: Callable[[], Session], config: EngineConfig) -> None:
        self.max_batch_size, self.max_wait_s = config.max_batch_size, config.max_wait_ms / 1000
        self._engine, self._open_session = engine, open_session
        self._sessions: dict[int, Session] = {}  # by the number of the process

    def answer(
        self, questions: Sequence[tuple[int, tuple[bool, Observation]]]
    ) -> list[Float32[np.ndarray, "_a"] | Exception]:
        """Return an action or an error for the observation of each process; at the first of an episode it begins."""
        requests = []
        for process, (begins, observation) in questions:
            if process not in self._sessions:
                self._sessions[process] = self._open_session()
            session = self._sessions[process]
            if begins:
                session.reset()
            requests.append((session, observation))
        return self._engine.step(requests)
