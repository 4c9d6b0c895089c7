"""Closed-loop rollouts: one episode, and a whole plan of them in one or several processes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path

from robovlms.config.choices import Language
from robovlms.errors import UserError
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.evaluation.folder import VIDEOS
from robovlms.evaluation.journal import Journal
from robovlms.evaluation.rollout import Start, attempt, result_of
from robovlms.evaluation.share import Share
from robovlms.progress import Progress
from robovlms.sims.base import Episode
from robovlms.workers import Answerer, Pool

logger = logging.getLogger(__name__)


def run_episodes(
    start: Start,
    episodes: Sequence[Episode],
    *,
    folder: Path,
    conditions: Mapping[str, object],
    num_workers: int = 1,
    start_answerer: Callable[[], Answerer] | None = None,
    share: Share | None = None,
) -> list[EpisodeResult]:
    """Play every episode that the journals in `folder` lack and return all results in the order of the plan.

    Results are appended to this process's journal as they come; videos go to `folder/videos`. The results depend on
    neither `num_workers` nor `share` as long as policy and simulator are deterministic after their `reset`.

    Args:
        start: builds policy and simulator, once in each process; picklable if `num_workers` > 1.
        episodes: the plan.
        folder: of this evaluation; holding an unfinished one, that one is continued.
        conditions: JSON values that the results depend on besides the plan, e.g. the checkpoint; a folder with results
            made under others is refused.
        num_workers: processes, each with what `start` builds; 1 plays in this process.
        start_answerer: builds what the policies of all processes ask, in this one (`robovlms.workers.ask`).
        share: this process's, where several of a launch play the plan together; unset: all of it.

    Raises:
        UserError: `folder` holds results of another plan or other conditions.
        Exception: what `start` raises, as it was raised.
        RuntimeError: an episode failed with an error; names it. Earlier results stay, the same call goes on from there.
            One of which two processes died is a result instead, and is played again by the next call.
        PolicyGoneError: the policy, elsewhere, cannot be asked any more. Earlier results stay, too.
    """
    share = share or Share()
    journal = Journal(folder, conditions, episodes, share.name)
    remaining = {number: episode for number, episode in enumerate(episodes) if episode not in journal.done}
    if remaining:
        (folder / VIDEOS).mkdir(parents=True, exist_ok=True)
    player = partial(_player, start, folder / VIDEOS)
    pool = Pool(player, min(num_workers, len(remaining)), "evaluation.num_workers", start_answerer)
    with closing(_play(pool, remaining, share)) as results:
        _record(results, journal, share, total=len(episodes))
    return [journal.done[episode] for episode in episodes]


def _record(results: Generator[EpisodeResult], journal: Journal, share: Share, total: int) -> None:
    """Write results down as they come, show the running success, and raise the first error once all are written."""
    failed, before, told = [], len(journal.done), 0
    with Progress("evaluating", total, "episode", initial=before, is_shown=share.is_main) as progress:
        for result in results:
            journal.append(result)
            last, told = told, share.publish(result)
            if result.has_failed:
                failed.append(result)
            own = [done.success for episode, done in journal.done.items() if episode.language is Language.own]
            progress.update(told - last, note=f"success {sum(own)}/{len(own)}")
    for result in share.published:
        if not result.has_failed:
            journal.done[result.episode] = result
        elif result not in failed:
            failed.append(result)
    if failed:
        first = failed[0]
        raise RuntimeError(
            f"episode {first.episode} failed; {len(journal.done)} of {total} results are in {journal.path.parent}, and "
            f"the same command goes on from there.\n{first.error}"
        )


@contextmanager
def _player(start: Start, videos: Path) -> Iterator[Callable[[Episode], EpisodeResult]]:
    policy, simulator = start()
    try:
        yield lambda episode: attempt(policy, simulator, episode, videos)
    finally:
        policy.close()
        simulator.close()


def _play(
    pool: Pool[Episode, EpisodeResult], episodes: Mapping[int, Episode], share: Share
) -> Generator[EpisodeResult]:
    """Yield results as they come; after an error the episodes at work are finished, and no other is begun."""
    with ExitStack() as stack:
        is_open = False
        for claimed in share.rounds(episodes):
            for first in claimed:  # a process that gets none loads nothing
                if not is_open:
                    stack.enter_context(pool)
                    is_open = True
                for _, result in pool.run(chain([first], claimed), if_dead=_lost):
                    yield result
                    if result.has_failed:
                        share.stop()


def _lost(episode: Episode, error: UserError) -> EpisodeResult:
    logger.warning("%s; this was the second time: the episode counts as an error", error)
    return result_of(episode, time.perf_counter(), error=str(error), lost=True)
