"""Closed-loop rollouts: one episode, and a whole plan of them in one or several processes."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8
from tqdm import tqdm

from robovlms.evaluation.episodes import Episode, EpisodeResult
from robovlms.evaluation.journal import Journal
from robovlms.evaluation.video import annotate, side_by_side, write_video
from robovlms.sims.base import Simulator
from robovlms.types import Observation

logger = logging.getLogger(__name__)


@runtime_checkable
class Policy(Protocol):
    """Whatever turns observations into actions; it may remember earlier ones of the same episode."""

    def reset(self) -> None:
        """Forget the episode so far."""

    def step(self, observation: Observation) -> Float32[np.ndarray, "a"]:
        """Give the next action, in environment units."""


Start: TypeAlias = Callable[[], tuple[Policy, Simulator]]
Frames: TypeAlias = list[UInt8[np.ndarray, "h x c"]]


def rollout(policy: Policy, simulator: Simulator, episode: Episode) -> tuple[EpisodeResult, Frames | None]:
    """Play one episode until success or the simulator's step limit.

    Returns:
        The result, and for `episode.record` what the policy saw (views side by side), first observation to last.
    """
    started = time.perf_counter()
    policy.reset()
    observation = simulator.reset(episode.task, episode.seed, episode.instruction)
    frames = [side_by_side(observation.frames)] if episode.record else None
    steps, success, done = 0, False, False
    while not (success or done):
        observation, success, done = simulator.step(policy.step(observation))
        steps += 1
        if frames is not None:
            frames.append(side_by_side(observation.frames))
    return _result(episode, started, success=bool(success), steps=steps), frames


def run_episodes(
    start: Start, episodes: Sequence[Episode], *, folder: Path, conditions: Mapping[str, object], num_workers: int = 1
) -> list[EpisodeResult]:
    """Play every episode that `folder/episodes.jsonl` does not hold yet, and give all results in the order of the plan.

    Results are appended to that file as they come; videos go to `folder/videos`. The results do not depend on
    `num_workers` as long as policy and simulator are deterministic after their `reset`.

    Args:
        start: builds policy and simulator, once in each process; picklable if `num_workers` > 1.
        episodes: the plan.
        folder: of this evaluation; holding an unfinished one, that one is continued.
        conditions: JSON values that the results depend on besides the plan, e.g. the checkpoint; a folder with results
            made under others is refused.
        num_workers: processes, each with its own policy and simulator; 1 plays in this process.

    Raises:
        ValueError: `folder` holds results of another plan or other conditions, or `num_workers` < 1.
        RuntimeError: an episode failed with an error; names it. Earlier results stay, the same call goes on from there.
    """
    if num_workers < 1:
        raise ValueError(f"evaluation.num_workers={num_workers} must be at least 1.")
    journal = Journal(folder / "episodes.jsonl", conditions, episodes)
    remaining = [episode for episode in episodes if episode.key not in journal.done]
    if remaining:
        videos = folder / "videos"
        videos.mkdir(parents=True, exist_ok=True)
        workers = min(num_workers, len(remaining))
        results = _here(start, remaining, videos) if workers == 1 else _in_workers(start, remaining, videos, workers)
        with closing(results):
            _record(results, journal, total=len(episodes))
    return [journal.done[episode.key] for episode in episodes]


def _record(results: Generator[EpisodeResult], journal: Journal, total: int) -> None:
    """Write results down as they come, show the running success, and raise the first error once all are written."""
    failed = []
    with tqdm(total=total, initial=len(journal.done), unit="episode", disable=None) as bar:  # None: only on a terminal
        for result in results:
            journal.append(result)
            if result.error is not None:
                failed.append(result)
                continue
            own = [done.success for done in journal.done.values() if not done.opposite]
            bar.set_postfix_str(f"success {sum(own)}/{len(own)}")
            bar.update()
    if failed:
        first = failed[0]
        told = " (told the opposite)" if first.opposite else ""
        raise RuntimeError(
            f"episode {first.task}, seed {first.seed}, '{first.instruction}'{told} failed; {len(journal.done)} of "
            f"{total} results are in {journal.path}, and the same command goes on from there.\n{first.error}"
        )


def _here(start: Start, episodes: Sequence[Episode], videos: Path) -> Generator[EpisodeResult]:
    policy, simulator = start()
    try:
        for episode in episodes:
            result = _attempt(policy, simulator, episode, videos)
            yield result
            if result.error is not None:
                return
    finally:
        simulator.close()


def _in_workers(start: Start, episodes: Sequence[Episode], videos: Path, num_workers: int) -> Generator[EpisodeResult]:
    """Hand out episodes to spawned processes, one at a time, and give results as they finish; none after an error.

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
    """Give what a worker reports: a result, or None once it is ready."""
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


def _attempt(policy: Policy, simulator: Simulator, episode: Episode, videos: Path) -> EpisodeResult:
    """Play an episode and write its video; an error becomes part of the result, so that it can cross processes."""
    started = time.perf_counter()
    try:
        result, frames = rollout(policy, simulator, episode)
        if frames is not None:
            verdict, is_good = _verdict(result)
            clip = annotate(
                frames, f"“{episode.instruction}”", verdict, is_good, hold=round(simulator.contract.control_hz)
            )
            write_video(videos / result.video_name, clip, simulator.contract.control_hz)
    except Exception:
        return _result(episode, started, success=False, steps=None, error=traceback.format_exc())
    return result


def _verdict(result: EpisodeResult) -> tuple[str, bool]:
    if result.opposite:
        return (f"DID {result.task} ANYWAY", False) if result.success else (f"did not do {result.task}", True)
    return ("SUCCESS", True) if result.success else ("FAIL", False)


def _result(
    episode: Episode, started: float, *, success: bool, steps: int | None, error: str | None = None
) -> EpisodeResult:
    return EpisodeResult(
        **episode.key._asdict(), success=success, steps=steps, seconds=time.perf_counter() - started, error=error
    )
