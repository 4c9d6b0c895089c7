"""One evaluation, shared by the processes of a launch: their store hands out the episodes and gathers the results.

An episode is claimed by writing one's own name under its number, atomically. A process beats as long as it lives; what
one that stopped beating had claimed is claimed again by others. The journals on disk do not depend on any of this: they
are what a later launch, of any number of processes, goes on from.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from robovlms.errors import UserError
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.sims.base import Episode

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

BEAT_S, POLL_S = 1.0, 0.2
LOST_S = 120.0  # without a beat, after which a process counts as lost
JOIN_S = 600.0  # that a process waits for the first one of its launch to begin
NOBODY = "-"  # in place of a claim: this episode is not played any more
GONE = "the evaluation goes on where it stopped when its command is repeated, with any number of processes."


class Share:
    """What one process plays of an evaluation; this one plays all of it."""

    name = ""  # of the process, for its journal
    is_main = True  # it writes what there is one of: results, report

    def on_main(self, act: Callable[[], T]) -> T:
        """Return, in every process, what `act`, run by the main one, returns: JSON values."""
        return act()

    def rounds(self, remaining: Mapping[int, Episode]) -> Iterator[Iterator[Episode]]:
        """Yield what this process is to play, each episode claimed when it is taken; results go to `publish`.

        Args:
            remaining: what is not on disk, by its number in the plan.
        """
        self._left, self._count = iter(remaining.values()), 0
        yield self._left

    def publish(self, result: EpisodeResult) -> int:
        """Tell the others of a result that is on disk; return how many all have told so far."""
        self._count += 1
        return self._count

    def stop(self) -> None:
        """Have no process begin another episode."""
        for _ in self._left:
            pass

    @property
    def published(self) -> list[EpisodeResult]:
        """What processes have published to each other, once the last of `rounds` is over."""
        return []


class SharedByLaunch(Share):
    """One of several processes that have a store in common; `joined` puts it to work.

    Args:
        store: of the launch; it outlives any single process.
        rank: number of this process; 0 is the main one.
        lost_s: seconds without a beat after which another process counts as lost.
    """

    def __init__(self, store: Store, rank: int, *, lost_s: float = LOST_S) -> None:
        self.name, self.is_main = f"rank{rank:03d}", rank == 0
        self._store, self._lost_s = store, lost_s
        self._me = f"{self.name}.{uuid.uuid4().hex[:8]}"
        self._beats: dict[str, tuple[int, float]] = {}  # of others: the last that was seen, and when it was new
        self._turns, self._published = count(), list[EpisodeResult]()

    @contextmanager
    def joined(self) -> Iterator[SharedByLaunch]:
        """Take part inside the block.

        Raises:
            UserError: the store or the main process is gone.
        """
        ended = threading.Event()
        beating = threading.Thread(target=self._beat, args=(ended,), daemon=True)
        try:
            beating.start()
            self._main = self._find_main()
            yield self
            if self.is_main:
                self._store.set(f"finished {self._me}", "")
        except RuntimeError as error:
            if not _is_of_store(error):
                raise
            raise UserError(f"the store of this launch is gone ({error}): its first machine ended; {GONE}") from error
        finally:
            ended.set()
            beating.join()

    def _beat(self, ended: threading.Event) -> None:
        with suppress(RuntimeError):  # the store is gone, which the main thread finds out itself
            while not ended.is_set():
                self._store.add(f"beat {self._me}", 1)
                ended.wait(BEAT_S)

    def _find_main(self) -> str:
        """Return the name of this launch's main process: one that beats, or has finished before this one began. The
        store may also hold the name of an earlier attempt's, which does neither.
        """
        if self.is_main:
            self._store.set("main", self._me)
            return self._me
        first: tuple[str, int] | None = None
        end = time.monotonic() + JOIN_S
        while time.monotonic() < end:
            if self._store.check(["main"]):
                name = self._store.get("main").decode()
                seen = self._store.add(f"beat {name}", 0)
                moves = first is not None and first[0] == name and seen > first[1]
                if moves or self._store.check([f"finished {name}"]):
                    return name
                first = first if first and first[0] == name else (name, seen)
            time.sleep(POLL_S)
        raise UserError(f"the first process of this launch did not begin within {JOIN_S:.0f} s; {GONE}")

    def _is_lost(self, name: str) -> bool:
        beat, now = self._store.add(f"beat {name}", 0), time.monotonic()
        last, when = self._beats.get(name, (-1, now))
        if beat != last:
            when = now
        self._beats[name] = (beat, when)
        return now - when > self._lost_s

    def on_main(self, act: Callable[[], T]) -> T:
        """Return, in every process, what `act`, run by the main one, returns: JSON values.

        Raises:
            SystemExit: in the others, where the main process raises what `act` raised.
            UserError: the main process is gone.
        """
        key = self._key(next(self._turns), "said")
        if self.is_main:
            outcome: dict[str, Any] = {}
            try:
                outcome = {"value": act()}
            finally:
                self._store.set(key, json.dumps(outcome))
        else:
            while not self._store.check([key]):
                if self._is_lost(self._main):
                    raise UserError(f"the first process of this launch is gone; {GONE}")
                time.sleep(POLL_S)
            outcome = json.loads(self._store.get(key))
            if "value" not in outcome:
                raise SystemExit(2)
        value: T = outcome["value"]
        return value

    def _key(self, *parts: object) -> str:
        """Return a key of the store that only this launch's present processes use."""
        return " ".join(map(str, (self._main, *parts)))

    def rounds(self, remaining: Mapping[int, Episode]) -> Iterator[Iterator[Episode]]:
        """Yield what this process is to play, until every episode is finished, by whomever."""
        turn = next(self._turns)
        self._keys = {episode: self._key(turn, "episode", number) for number, episode in remaining.items()}
        self._count_key, self._published = self._key(turn, "count"), []
        yield self._claimed(dict.fromkeys(remaining.values(), ""))
        open_ = list(remaining.values())
        while open_:
            values = self._store.multi_get([self._keys[episode] for episode in open_])
            claims = dict(zip(open_, (value.decode() for value in values), strict=True))
            self._published += [EpisodeResult.from_json(json.loads(text)) for text in claims.values() if text[0] == "{"]
            open_ = [episode for episode, text in claims.items() if text != NOBODY and text[0] != "{"]
            assert self._me not in claims.values(), "a result of this process was not published"
            lost = {episode: claims[episode] for episode in open_ if self._is_lost(claims[episode])}
            if lost:
                yield self._claimed(lost)
            elif open_:
                time.sleep(POLL_S)

    def _claimed(self, owners: Mapping[Episode, str]) -> Iterator[Episode]:
        """Yield the episodes that this process is the first to claim after their owners ("": nobody)."""
        for episode, owner in owners.items():
            if self._claim(episode, self._me, owner):
                yield episode

    def _claim(self, episode: Episode, name: str, owner: str = "") -> bool:
        return self._store.compare_set(self._keys[episode], owner, name).decode() == name

    def publish(self, result: EpisodeResult) -> int:
        """Tell the others of a result that is on disk; return how many all have told so far."""
        self._store.set(self._keys[result.episode], json.dumps(result.to_json()))
        return self._store.add(self._count_key, 1)

    def stop(self) -> None:
        """Have no process begin another episode."""
        for episode in self._keys:
            self._claim(episode, NOBODY)

    @property
    def published(self) -> list[EpisodeResult]:
        """What all have published, this one's own among it, once the last of `rounds` is over."""
        return self._published


def _is_of_store(error: RuntimeError) -> bool:
    from torch.distributed import DistError

    return isinstance(error, DistError)


@contextmanager
def share_of_launch(*, lost_s: float = LOST_S) -> Iterator[Share]:
    """Return this process's share: that of one of several where torchrun started them, else all.

    Args:
        lost_s: seconds without a sign of life after which another process counts as lost.

    Raises:
        UserError: the launch fell apart.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        yield Share()
        return
    from torch.distributed.rendezvous import rendezvous

    store, rank, _ = next(rendezvous("env://", timeout=timedelta(seconds=JOIN_S)))
    with SharedByLaunch(store, rank, lost_s=lost_s).joined() as share:
        yield share
