"""Requests of many clients become batches of the policy, which works in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32

from robovlms.errors import UserError
from robovlms.policy.sessions import Session
from robovlms.serving.codecs import BUSY
from robovlms.serving.metrics import BATCH_SIZE, STAGE, Metrics
from robovlms.types import Observation

ACTIVE_S = 1.0  # for so long after its last request a session is expected to ask again
Request: TypeAlias = tuple[Session, Observation]
Actions: TypeAlias = Float32[np.ndarray, "k _a"]
Answer: TypeAlias = Callable[[Sequence[Request]], Sequence[Actions | Exception]]

log = logging.getLogger(__name__)


class BusyError(UserError):
    """The server has as much to do as it takes; ask again later."""


@dataclass(eq=False)
class Waiting:
    """A request that nobody has begun to answer."""

    session: Session
    observation: Observation
    answer: asyncio.Future[Actions]
    since: float


class Dispatcher:
    """Answers requests in batches: what has come while the policy was at work goes into its next forward.

    An idle policy waits for more requests only while other sessions are expected to ask, and at most `max_wait_ms`.
    Requests of a session are answered in their order, one in a batch.
    """

    def __init__(
        self, answer: Answer, metrics: Metrics, *, max_batch_size: int, max_wait_ms: float, max_waiting: int
    ) -> None:
        """Take what answers a batch, and its limits.

        Args:
            answer: called in one thread, the same for every batch.
            metrics: where durations and batch sizes go.
            max_batch_size: sessions in one batch.
            max_wait_ms: that the first request of a batch waits for others.
            max_waiting: requests that may wait; one more is refused.
        """
        self._answer, self._metrics = answer, metrics
        self._max_batch_size, self._max_wait_s, self._max_waiting = max_batch_size, max_wait_ms / 1000, max_waiting
        self._waiting: list[Waiting] = []
        self._batch: list[Waiting] = []
        self._last_asked: dict[Session, float] = {}
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "policy")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Dispatcher:
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._thread.shutdown(wait=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Leave nobody waiting, whatever has ended the work."""
        fault = None if task.cancelled() else task.exception()
        if fault is not None:
            log.critical("no more batches are answered: this is our fault", exc_info=fault)
        for each in [*self._waiting, *self._batch]:
            if not each.answer.done():
                each.answer.set_exception(fault or BusyError("the server has ended."))

    @property
    def num_waiting(self) -> int:
        """Requests that nobody has begun to answer."""
        return len(self._waiting)

    async def ask(self, session: Session, observation: Observation) -> Actions:
        """Return the actions for a session's newest observation.

        Raises:
            BusyError: too many requests wait.
            Exception: what the policy has against this request.
        """
        if self._task is None or self._task.done():
            raise BusyError("the server has ended.")
        if len(self._waiting) >= self._max_waiting:
            raise BusyError(f"{BUSY}: {self._max_waiting} requests wait (max_waiting). Ask again later.")
        now = time.perf_counter()
        request = Waiting(session, observation, asyncio.get_running_loop().create_future(), now)
        self._last_asked[session] = now
        self._waiting.append(request)
        self._arrived.set()
        try:
            return await request.answer
        finally:
            self._metrics.measure(STAGE, time.perf_counter() - now, "all")

    def forget(self, session: Session) -> None:
        """Expect nothing more of a session, whose waiting requests are dropped."""
        self._last_asked.pop(session, None)
        self._waiting = [each for each in self._waiting if each.session is not session]

    async def _run(self) -> None:
        while True:
            await self._gather()
            self._batch = batch = self._take()
            if not batch:
                continue
            started = time.perf_counter()
            answers = await self._attempt([(each.session, each.observation) for each in batch])
            taken = time.perf_counter() - started
            self._metrics.measure(BATCH_SIZE, len(batch))
            for each, answer in zip(batch, answers, strict=True):
                self._metrics.measure(STAGE, started - each.since, "waiting")
                self._metrics.measure(STAGE, taken, "policy")
                if each.answer.done():  # whoever asked is gone
                    continue
                if isinstance(answer, Exception):
                    each.answer.set_exception(answer)
                else:
                    each.answer.set_result(answer)

    async def _attempt(self, requests: Sequence[Request]) -> Sequence[Actions | Exception]:
        """Let the policy answer; a fault of ours is everybody's answer, and does not end the server."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, requests)
        except Exception as error:
            log.exception("the policy failed on %d requests", len(requests))
            return [error] * len(requests)

    async def _gather(self) -> None:
        """Wait until there is a batch worth a forward."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        left = self._waiting[0].since + self._max_wait_s - time.perf_counter()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(left, 0)):
                while self._waiting and not self._is_full():
                    self._arrived.clear()
                    await self._arrived.wait()

    def _is_full(self) -> bool:
        """Tell whether all sessions that may ask have asked, or as many as a batch has room for."""
        now = time.perf_counter()
        self._last_asked = {session: at for session, at in self._last_asked.items() if now - at < ACTIVE_S}
        asking = {each.session for each in self._waiting}
        return len(asking) >= min(self._max_batch_size, len(asking | self._last_asked.keys()))

    def _take(self) -> list[Waiting]:
        """Remove a batch from the queue: the oldest request of each session, the oldest sessions first."""
        batch: dict[Session, Waiting] = {}
        left = []
        for each in self._waiting:
            if each.answer.done():
                continue
            if each.session in batch or len(batch) == self._max_batch_size:
                left.append(each)
            else:
                batch[each.session] = each
        self._waiting = left
        return list(batch.values())
