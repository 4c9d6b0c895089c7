"""Closed-loop rollouts: one episode, and a whole plan of them in one or several processes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import takewhile
from pathlib import Path

from robovlms.config.choices import Language
from robovlms.errors import UserError
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.evaluation.journal import Journal
from robovlms.evaluation.rollout import Start, attempt, result_of
from robovlms.progress import Progress
from robovlms.sims.base import Episode
from robovlms.workers import Pool

logger = logging.getLogger(__name__)


def run_episodes(
    start: Start, episodes: Sequence[Episode], *, folder: Path, conditions: Mapping[str, object], num_workers: int = 1
) -> list[EpisodeResult]:
    """Play every episode that `folder/episodes.jsonl` lacks and return all results in the order of the plan.

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
        UserError: `folder` holds results of another plan or other conditions.
        Exception: what `start` raises, as it was raised.
        RuntimeError: an episode failed with an error; names it. Earlier results stay, the same call goes on from there.
    """
    journal = Journal(folder / "episodes.jsonl", conditions, episodes)
    remaining = [episode for episode in episodes if episode not in journal.done]
    if remaining:
        videos = folder / "videos"
        videos.mkdir(parents=True, exist_ok=True)
        workers = min(num_workers, len(remaining))
        with closing(_play(start, remaining, videos, workers)) as results:
            _record(results, journal, total=len(episodes))
    return [journal.done[episode] for episode in episodes]


def _record(results: Generator[EpisodeResult], journal: Journal, total: int) -> None:
    """Write results down as they come, show the running success, and raise the first error once all are written."""
    failed = []
    with Progress("evaluating", total, "episode", initial=len(journal.done)) as progress:
        for result in results:
            journal.append(result)
            if result.error is not None:
                failed.append(result)
                continue
            own = [done.success for episode, done in journal.done.items() if episode.language is Language.own]
            progress.update(note=f"success {sum(own)}/{len(own)}")
    if failed:
        first = failed[0]
        raise RuntimeError(
            f"episode {first.episode} failed; {len(journal.done)} of {total} results are in {journal.path}, and the "
            f"same command goes on from there.\n{first.error}"
        )


@contextmanager
def _player(start: Start, videos: Path) -> Iterator[Callable[[Episode], EpisodeResult]]:
    policy, simulator = start()
    try:
        yield lambda episode: attempt(policy, simulator, episode, videos)
    finally:
        simulator.close()


def _play(start: Start, episodes: Sequence[Episode], videos: Path, num_workers: int) -> Generator[EpisodeResult]:
    """Yield results as they come; after an error the episodes at work are finished, and no other is begun."""
    is_sound = True
    waiting = takewhile(lambda _: is_sound, episodes)
    with Pool(partial(_player, start, videos), num_workers, "evaluation.num_workers") as pool:
        for _, result in pool.run(waiting, if_dead=_lost):
            is_sound = is_sound and result.error is None
            yield result


def _lost(episode: Episode, error: UserError) -> EpisodeResult:
    return result_of(episode, time.perf_counter(), error=str(error))
