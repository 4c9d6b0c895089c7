"""Requests become batches: who is in one, in which order, and what a fault or a full queue means for the others."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
from served import SINGLE, config_of

from robovlms.serving.dispatcher import BusyError, Dispatcher
from robovlms.serving.metrics import BATCH_SIZE, STAGE, Metrics
from robovlms.serving.server import load_service
from robovlms.types import Observation


@pytest.fixture(scope="module")
def sessions():
    engine = load_service(config_of(SINGLE)).engine
    return [engine.open(name=f"robot {i}") for i in range(8)]


class Policy:
    """Answers with what it is shown, and remembers with whom."""

    def __init__(self, seconds=0.0):
        self.batches, self.seconds, self.threads = [], seconds, set()

    def __call__(self, requests):
        self.threads.add(threading.get_ident())
        self.batches.append([(session.name, observation.proprio) for session, observation in requests])
        time.sleep(self.seconds)
        if any(observation.instruction == "break" for _, observation in requests):
            raise RuntimeError("broken")
        wrong = FloatingPointError("not finite")
        return [wrong if o.instruction == "nan" else np.full((1, 1), o.proprio, np.float32) for _, o in requests]


def shown(number, instruction="x"):
    return Observation(frames={}, instruction=instruction, proprio=number)


def run(policy, play, **limits):
    async def main():
        metrics = Metrics()
        limits_of = {"max_batch_size": 8, "max_wait_ms": 50.0, "max_waiting": 100} | limits
        async with Dispatcher(policy, metrics, **limits_of) as dispatcher:
            return await play(dispatcher), metrics

    return asyncio.run(main())


def test_what_comes_while_the_policy_works_is_its_next_batch(sessions):
    policy = Policy(0.05)

    async def play(dispatcher):
        first = asyncio.create_task(dispatcher.ask(sessions[0], shown(0)))
        await asyncio.sleep(0.02)
        return [await first, *await asyncio.gather(*(dispatcher.ask(sessions[i], shown(i)) for i in range(1, 5)))]

    answers, metrics = run(policy, play, max_wait_ms=0.0)
    assert [int(answer[0, 0]) for answer in answers] == list(range(5))
    assert [len(batch) for batch in policy.batches] == [1, 4]
    assert len(policy.threads) == 1
    assert list(metrics._values[BATCH_SIZE, ""]) == [1, 4]


def test_a_session_is_in_a_batch_once_and_is_answered_in_its_order(sessions):
    policy = Policy()

    async def play(dispatcher):
        asked = [dispatcher.ask(sessions[i % 2], shown(i)) for i in range(6)]
        return await asyncio.gather(*asked)

    answers, _ = run(policy, play)
    assert [int(answer[0, 0]) for answer in answers] == list(range(6))
    assert policy.batches == [[("robot 0", i), ("robot 1", i + 1)] for i in (0, 2, 4)]


def test_a_single_session_never_waits_for_others(sessions):
    async def play(dispatcher):
        for i in range(10):
            await dispatcher.ask(sessions[0], shown(i))

    _, metrics = run(Policy(), play, max_wait_ms=5000.0)
    assert max(metrics._values[STAGE, "waiting"]) < 1


def test_an_idle_policy_waits_for_sessions_that_asked_before_but_not_for_ever(sessions):
    policy = Policy()

    async def play(dispatcher):
        await asyncio.gather(*(dispatcher.ask(session, shown(0)) for session in sessions[:3]))
        late = asyncio.create_task(dispatcher.ask(sessions[0], shown(1)))
        await asyncio.sleep(0.01)
        await asyncio.gather(late, dispatcher.ask(sessions[1], shown(1)))  # the third is busy elsewhere

    run(policy, play, max_wait_ms=100.0)
    assert [len(batch) for batch in policy.batches] == [3, 2]


def test_batches_are_no_larger_than_they_may_be_and_the_oldest_go_first(sessions):
    policy = Policy()

    async def play(dispatcher):
        await asyncio.gather(*(dispatcher.ask(session, shown(i)) for i, session in enumerate(sessions)))

    run(policy, play, max_batch_size=3)
    assert [[number for _, number in batch] for batch in policy.batches] == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_more_requests_than_may_wait_are_told_so_at_once(sessions):
    async def play(dispatcher):
        asked = [dispatcher.ask(session, shown(i)) for i, session in enumerate(sessions)]
        return await asyncio.gather(*asked, return_exceptions=True)

    answers, _ = run(Policy(), play, max_waiting=5)
    assert [isinstance(answer, BusyError) for answer in answers] == [False] * 5 + [True] * 3


def test_a_row_that_fails_is_one_sessions_error(sessions):
    async def play(dispatcher):
        asked = [dispatcher.ask(sessions[i], shown(i, "nan" if i == 1 else "x")) for i in range(3)]
        return await asyncio.gather(*asked, return_exceptions=True)

    answers, _ = run(Policy(), play)
    assert [type(answer) for answer in answers] == [np.ndarray, FloatingPointError, np.ndarray]


def test_a_policy_that_breaks_goes_on_with_the_next_batch(sessions):
    async def play(dispatcher):
        with pytest.raises(RuntimeError, match="broken"):
            await dispatcher.ask(sessions[0], shown(0, "break"))
        return await dispatcher.ask(sessions[0], shown(1))

    answer, _ = run(Policy(), play)
    assert answer[0, 0] == 1


def test_whoever_gives_up_is_not_asked_for_and_keeps_nobody(sessions):
    policy = Policy(0.05)

    async def play(dispatcher):
        first = asyncio.create_task(dispatcher.ask(sessions[0], shown(0)))
        await asyncio.sleep(0.02)
        gone = asyncio.create_task(dispatcher.ask(sessions[1], shown(1)))
        await asyncio.sleep(0)
        gone.cancel()
        await first
        return await dispatcher.ask(sessions[2], shown(2))

    answer, _ = run(policy, play, max_wait_ms=0.0)
    assert answer[0, 0] == 2
    assert [name for batch in policy.batches for name, _ in batch] == ["robot 0", "robot 2"]


def test_whatever_ends_the_work_leaves_nobody_waiting(sessions):
    async def play(dispatcher):
        asked = [dispatcher.ask(session, shown(i)) for i, session in enumerate(sessions[:3])]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        with pytest.raises(BusyError, match="has ended"):
            await dispatcher.ask(sessions[0], shown(0))
        return answers

    answers, _ = run(lambda requests: [], play, max_batch_size=2)
    assert all(isinstance(answer, ValueError) for answer in answers)
