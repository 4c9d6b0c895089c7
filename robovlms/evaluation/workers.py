"""Episodes in several processes."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
import traceback
from collections import deque
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from robovlms.evaluation.episodes import Episode, EpisodeResult
from robovlms.evaluation.rollout import Start, _attempt, _result
from robovlms.terminal import set_up_logging


def _in_workers(start: Start, episodes: Sequence[Episode], videos: Path, num_workers: int) -> Generator[EpisodeResult]:
    """Hand out episodes to spawned processes, one at a time, and return results as they finish; none after an error.

    Each worker has a pipe of its own and nobody else holds its ends: a worker whose parent dies, even by SIGKILL, reads
    the end of the pipe after its episode and exits; a parent whose worker dies learns it at once.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque(episodes)
    workers: dict[Connection, SpawnProcess] = {}
    playing: dict[Connection, Episode] = {}
    processes: list[SpawnProcess] = []
    try:
        for _ in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, start, videos), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = process
            processes.append(process)
        while workers:
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)
                result = _receive(connection, workers[connection], playing.get(connection))
                if result is not None:
                    yield result
                    if result.error is not None:
                        waiting.clear()  # what the other workers are playing is still worth having
                if waiting:
                    playing[connection] = waiting.popleft()
                    connection.send(playing[connection])
                else:
                    del workers[connection]
                    connection.close()
    finally:
        _stop(processes, now=bool(workers))


def _stop(processes: list[SpawnProcess], now: bool) -> None:
    for process in processes:
        if now:
            process.terminate()
    for process in processes:
        process.join(timeout=10)
        if process.is_alive():
            process.kill()


def _receive(connection: Connection, process: SpawnProcess, playing: Episode | None) -> EpisodeResult | None:
    """Return what a worker reports: a result, or None once it is ready."""
    try:
        message: EpisodeResult | str | None = connection.recv()
    except EOFError:
        process.join(timeout=10)
        died = f"the worker process died with exit code {process.exitcode} (negative: by that signal)"
        if playing is None:
            raise RuntimeError(f"{died} before its first episode; set evaluation.num_workers=1 to see why.") from None
        return _result(playing, time.perf_counter(), success=False, steps=None, error=died)
    if isinstance(message, str):
        raise RuntimeError(f"an evaluation worker could not start:\n{message}")
    return message


def _serve(connection: Connection, start: Start, videos: Path) -> None:
    """Be a worker: say None when ready (or why not), then answer every episode with its result until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends its workers
    set_up_logging(logging.WARNING)
    try:
        policy, simulator = start()
    except Exception:
        connection.send(traceback.format_exc())
        return
    try:
        connection.send(None)
        while True:
            connection.send(_attempt(policy, simulator, connection.recv(), videos))
    except (EOFError, ConnectionError):
        return  # no more episodes, or the parent is gone
    finally:
        simulator.close()
