"""Processes that work on jobs: errors arrive as they were raised, a dead process is named with the likely cause.

A process leaves with its parent, whatever ended that, and Ctrl-C ends all at once.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

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


class Pool(Generic[J, R]):
    """Processes that do jobs, each with what it needs built once; a context manager.

    Args:
        start: builds what does a job, in each process, and takes it down; picklable.
        num_workers: processes; 1 works in this one.
        option: that sets their number, for messages.
    """

    def __init__(
        self, start: Callable[[], AbstractContextManager[Callable[[J], R]]], num_workers: int, option: str
    ) -> None:
        self._start, self._num_workers, self._option = start, num_workers, option
        self._workers: dict[Connection, BaseProcess] = {}
        self._stack = ExitStack()
        self._here: Callable[[J], R] | None = None

    def __enter__(self) -> Pool[J, R]:
        if self._num_workers <= 1:
            self._here = self._stack.enter_context(self._start())
            return self
        context = multiprocessing.get_context("spawn")  # a fork could inherit locked threads
        for _ in range(self._num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self._start), daemon=True)
            process.start()
            theirs.close()  # nobody else holds it, so that the death of either side is the end of the pipe
            self._workers[ours] = process
        return self

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
            if_dead: makes the result of a job whose process died, from what would be raised without it. After that the
                jobs at work are finished, and no other is begun.

        Raises:
            UserError: a process died; says at which job, and of what.
            Exception: what a job raised, as it was raised. Jobs that are being worked on are lost.
        """
        if self._here is not None:
            for job in jobs:
                yield job, self._here(job)
            return
        waiting, working, free = iter(jobs), dict[Connection, J](), list(self._workers)
        while True:
            for connection, job in zip(free, waiting, strict=False):
                working[connection] = job
                with suppress(ConnectionError):  # it died: there is no answer, and that says so
                    connection.send(job)
            if not working:
                return
            for ready in wait(list(working)):
                connection = cast("Connection", ready)
                job = working.pop(connection)
                try:
                    answer: R | Failure = connection.recv()
                except (EOFError, ConnectionError):
                    died = self._died(connection, job)
                    if if_dead is None:
                        raise died from None
                    waiting, answer = iter(()), if_dead(job, died)
                yield job, _result(answer)
            free = [connection for connection in self._workers if connection not in working]

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


def _serve(connection: Connection, start: Callable[[], AbstractContextManager[Callable[[Any], Any]]]) -> None:
    """Be a process: answer every job with its result until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its processes
    set_up_logging(logging.WARNING)
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
