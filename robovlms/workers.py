"""Processes that work on jobs: errors arrive as they were raised, a dead process is named with the likely cause. Jobs
may ask the process that they work for, which answers several at once.

A process leaves with its parent, whatever ended that, and Ctrl-C ends all at once.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

from robovlms.errors import UserError
from robovlms.terminal import set_up_logging

J = TypeVar("J")
R = TypeVar("R")

_DEATHS = {
    signal.SIGKILL: "most often by the system because memory ran out (dmesg tells)",
    signal.SIGBUS: "most often because shared memory ran out (df /dev/shm tells)",
    signal.SIGSEGV: "by a fault inside a library, perhaps one that met a damaged file",
    signal.SIGABRT: "by a fault inside a library, perhaps one that met a damaged file",
}
_STOP_S = 10.0  # that a process may take to finish
_DEATH = object()  # in place of a result
MAX_LOST = 3  # jobs in a row of which two processes each died: it is not the job's fault


@dataclass(frozen=True)
class Failure:
    """An error of a process, on its way in place of a result."""

    error: Exception
    trace: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Take an error, or its text where it cannot be sent."""
        trace = "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # whatever its class does when it is pickled
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return cls(error, trace)

    @property
    def cause(self) -> RuntimeError:
        """What to raise `error` from: it shows where in the process it happened."""
        return RuntimeError(f"in another process:\n{self.trace}")


def death(process: BaseProcess) -> str:
    """Say which process died, and the likely cause."""
    code = process.exitcode or 0
    how = f"ended with status {code}"
    if code < 0:
        cause = signal.Signals(-code)
        how = f"was ended by {cause.name}, {_DEATHS.get(cause, 'a signal from outside')}"
    return f"process {process.pid} {how}"


@runtime_checkable
class Answerer(Protocol):
    """What the jobs of all processes ask, so that several are answered together."""

    max_batch_size: int  # questions that are answered together
    max_wait_s: float  # that a question waits for others

    def answer(self, questions: Sequence[tuple[int, Any]]) -> Sequence[Any]:
        """Return the answer to the question of each process, known by its number; an exception is raised there."""


@dataclass(frozen=True)
class Question:
    """What a job asks, on its way in place of a result."""

    content: Any


_ask: ContextVar[Callable[[Any], Any]] = ContextVar("ask")


def ask(content: Any) -> Any:
    """Return what the pool's `Answerer` says to a question of the job at work.

    Raises:
        LookupError: nobody is there to ask.
        Exception: what the answerer returned.
    """
    return _ask.get()(content)


class Pool(Generic[J, R]):
    """Processes that do jobs, each with what it needs built once; a context manager.

    Args:
        start: builds what does a job, in each process, and takes it down; picklable.
        num_workers: processes; 1 works in this one.
        option: that sets their number, for messages.
        start_answerer: builds what answers `ask`, in this process.
    """

    def __init__(
        self,
        start: Callable[[], AbstractContextManager[Callable[[J], R]]],
        num_workers: int,
        option: str,
        start_answerer: Callable[[], Answerer] | None = None,
    ) -> None:
        self._start, self._num_workers, self._option = start, num_workers, option
        self._start_answerer = start_answerer
        self._answerer: Answerer | None = None
        self._workers: dict[Connection, BaseProcess] = {}
        self._questions: dict[Connection, Any] = {}  # not answered yet
        self._asked = 0.0  # when the first of them was
        self._stack = ExitStack()
        self._here: Callable[[J], R] | None = None

    def __enter__(self) -> Pool[J, R]:
        if self._start_answerer is not None:
            self._answerer = self._start_answerer()
        if self._num_workers <= 1:
            with ExitStack() as stack:
                if self._answerer is not None:
                    stack.callback(_ask.reset, _ask.set(partial(_ask_here, self._answerer)))
                self._here = stack.enter_context(self._start())
                self._stack = stack.pop_all()
            return self
        for _ in range(self._num_workers):
            self._launch()
        return self

    def _launch(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork could inherit locked threads
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._start), daemon=True)
        process.start()
        theirs.close()  # nobody else holds it, so that the death of either side is the end of the pipe
        self._workers[ours] = process

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection, process in self._workers.items():
            connection.close()
            if kind is not None:
                process.terminate()
        for process in self._workers.values():
            process.join(timeout=_STOP_S)
            if process.is_alive():
                process.kill()
        self._stack.__exit__(kind, error, trace)

    def run(self, jobs: Iterable[J], *, if_dead: Callable[[J, UserError], R] | None = None) -> Generator[tuple[J, R]]:
        """Yield every job with its result, as they finish.

        Args:
            jobs: each is taken when a process is free for it, so that they may end early.
            if_dead: makes the result of a job whose process died, from what would be raised without it. Before that, a
                new process does the job once more, and others go on.

        Raises:
            UserError: a process died, without `if_dead` or at MAX_LOST jobs in a row; says at which job, and of what.
            Exception: what a job raised, as it was raised. Jobs that are being worked on are lost.
        """
        if (here := self._here) is not None:
            yield from ((job, here(job)) for job in jobs)
            return
        waiting, again = ((job, False) for job in jobs), list[tuple[J, bool]]()  # with: whether a process died of it
        working, num_lost = dict[Connection, tuple[J, bool]](), 0
        while True:
            for connection in [each for each in self._workers if each not in working]:
                if (item := again.pop() if again else next(waiting, None)) is None:
                    break
                working[connection] = item
                with suppress(ConnectionError):  # it died: there is no answer, and that says so
                    connection.send(item[0])
            if not working:
                return
            for connection, answer in self._receive(list(working)):
                job, is_second = working.pop(connection)
                num_lost = num_lost + is_second if answer is _DEATH else 0
                if answer is _DEATH:
                    died = self._died(connection, job)
                    if if_dead is None or num_lost == MAX_LOST:
                        raise died
                    self._replace(connection)
                    if not is_second:
                        again.append((job, True))
                        continue
                    answer = if_dead(job, died)
                yield job, _result(answer)

    def _receive(self, working: Sequence[Connection]) -> list[tuple[Connection, Any]]:
        """Return the results of processes, one at least; questions are answered meanwhile."""
        while True:
            quiet = [connection for connection in working if connection not in self._questions]
            results = []
            for ready in wait(quiet, self._patience()):
                connection = cast("Connection", ready)
                content = _received(connection)
                if isinstance(content, Question):
                    self._asked = self._asked if self._questions else time.monotonic()
                    self._questions[connection] = content.content
                else:
                    results.append((connection, content))
            if self._questions and (len(self._questions) + len(results) == len(working) or self._patience() == 0.0):
                self._answer()
            if results:
                return results

    def _patience(self) -> float | None:
        """Return the seconds that questions may still wait for others; None: there are none."""
        if not self._questions:
            return None
        if self._answerer is None or len(self._questions) >= self._answerer.max_batch_size:
            return 0.0
        return max(0.0, self._asked + self._answerer.max_wait_s - time.monotonic())

    def _answer(self) -> None:
        """Answer the questions that fit into a batch, the oldest first."""
        if self._answerer is None:
            raise LookupError("a job asks, and nobody is there to answer: Pool(start_answerer=...)")
        asked = list(self._questions)[: self._answerer.max_batch_size]
        numbered = [(self._workers[each].pid or 0, self._questions.pop(each)) for each in asked]
        for connection, answer in zip(asked, self._answerer.answer(numbered), strict=True):
            with suppress(ConnectionError):  # it died meanwhile
                connection.send(_sendable(answer))

    def _replace(self, connection: Connection) -> None:
        """Put a new process in the place of a dead one."""
        del self._workers[connection]
        connection.close()
        self._launch()

    def _died(self, connection: Connection, job: J) -> UserError:
        process = self._workers[connection]
        process.join(timeout=_STOP_S)
        return UserError(
            f"{death(process)}, while it worked on {job}. Where memory is short, lower {self._option}="
            f"{self._num_workers}; {self._option}=1 works in one process."
        )


def _result(answer: R | Failure) -> R:
    if isinstance(answer, Failure):
        raise answer.error from answer.cause
    return answer


def _sendable(answer: Any) -> Any:
    return Failure.of(answer) if isinstance(answer, Exception) else answer


def _received(connection: Connection) -> Any:
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        return _DEATH


def _ask_here(answerer: Answerer, content: Any) -> Any:
    answer = answerer.answer([(0, content)])[0]
    if isinstance(answer, Exception):
        raise answer
    return answer


def _ask_parent(connection: Connection, content: Any) -> Any:
    connection.send(Question(content))
    return _result(connection.recv())


def _serve(connection: Connection, start: Callable[[], AbstractContextManager[Callable[[Any], Any]]]) -> None:
    """Be a process: answer every job with its result until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its processes
    set_up_logging(logging.WARNING)
    _ask.set(partial(_ask_parent, connection))
    try:
        with start() as work, suppress(EOFError, ConnectionError):  # no more jobs, or the parent is gone
            while True:
                connection.send(_attempt(work, connection.recv()))
    except Exception as error:
        with suppress(EOFError, ConnectionError):
            connection.recv()  # the job that asks for what could not be started
            connection.send(Failure.of(error))


def _attempt(work: Callable[[Any], Any], job: Any) -> Any:
    try:
        return work(job)
    except Exception as error:
        return Failure.of(error)
