"""What all protocols share: a policy with proprioception, names, rows, and limits."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from served import SINGLE, close, config_of
from test_parity import NORMALIZER, SOURCE, make_policy, observe

from robovlms.config.choices import Structure
from robovlms.errors import UserError
from robovlms.policy.engine import PolicyEngine
from robovlms.policy.spec import PolicySpec, SourceSpec
from robovlms.serving.dispatcher import BusyError
from robovlms.serving.service import Service

SPEC = PolicySpec(
    name="nano",
    views={"side": 32, "wrist": 32},
    window_size=3,
    chunk_size=4,
    sources={"play": SourceSpec(contract=SOURCE.contract, proprio_names=["p0", "p1"], statistics="")},
)


def make_engine():
    source = replace(SOURCE, name="play", views=["side", "wrist"])
    policy = make_policy("nano", Structure.policy_head, "lstm", proprio=True)
    return PolicyEngine(policy, [(source, NORMALIZER)], window_size=3)


ENGINE = make_engine()


def play(coroutine, *overrides):
    """Run a coroutine with a service."""

    async def main():
        service = Service(ENGINE, SPEC, config_of(SINGLE, *overrides))
        async with service.running():
            return await coroutine(service)

    return asyncio.run(main())


def alone(*steps):
    session = ENGINE.open("play")
    return [ENGINE.predict([(session, observe(step))])[0] for step in steps]


def test_entries_of_proprioception_are_picked_by_name():
    async def act(service):
        seen = observe(0)
        first, second = seen.proprio
        return await service.connect("robot").act([replace(seen, proprio=[9.0, second, first])])

    (found,) = play(act, "protocol.proprio_names=[x,p1,p0]")
    close(found, alone(0)[0])


@pytest.mark.parametrize("proprio", [[1.0], "x", [[1.0], [1.0, 2.0]], {"a": 1}, [float("nan")] * 3, None])
def test_proprioception_that_is_something_else_is_refused(proprio):
    async def act(service):
        with pytest.raises(UserError, match="propriocept"):
            await service.connect("robot").act([replace(observe(0), proprio=proprio)])

    play(act, "protocol.proprio_names=[x,p1,p0]")
    play(act)


def test_names_that_lack_what_the_policy_was_trained_with_are_refused():
    with pytest.raises(UserError, match=r"protocol\.proprio_names=\['x', 'p1'\] lacks p0"):
        Service(ENGINE, SPEC, config_of(SINGLE, "protocol.proprio_names=[x,p1]"))


def test_a_robot_without_proprioception_is_refused_when_it_says_so():
    async def declare(service):
        with pytest.raises(UserError, match="p1"):
            service.connect("robot").declare({"proprio_names": ["p0"]})
        service.connect("robot").declare({"proprio_names": ["p1", "p0", "q"], "control_hz": 10})

    play(declare)


def test_rows_of_a_client_are_robots_of_their_own_and_a_reset_begins_all_anew():
    async def act(service):
        client = service.connect("robots")
        turns = [await client.act([observe(step), observe(step + 5)]) for step in range(2)]
        client.reset()
        return [*turns, await client.act([observe(0)])]

    assert abs(alone(0)[0] - alone(1, 0)[1]).max() > 1e-4  # what came before matters
    first, second, again = play(act)
    for found, expected in zip((first, second), zip(alone(0, 1), alone(5, 6), strict=True), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    close(again[0], alone(0)[0])


def test_sessions_are_as_many_as_they_may_be_however_they_are_asked_for():
    async def act(service):
        client = service.connect("robots")
        with pytest.raises(BusyError, match="max_sessions"):
            await client.act([observe(0)] * 4)
        client.close()
        assert len(await service.connect("robots").act([observe(0)] * 3)) == 3

    play(act, "max_sessions=3")


def test_a_policy_that_predicts_no_number_is_an_error_that_says_so():
    async def act(service):
        client = service.connect("robot")
        head = service.engine.policy.head
        before = {name: value.clone() for name, value in head.state_dict().items()}
        for value in head.parameters():
            value.data.fill_(float("nan"))
        try:
            with pytest.raises(FloatingPointError, match="not finite at step") as caught:
                await client.act([observe(0)])
        finally:
            head.load_state_dict(before)
        assert "not finite" in service.refuse("robot", caught.value)
        client.reset()
        await client.act([observe(1)])
        return service.metrics.text()

    text = play(act)
    assert 'robovlms_requests_total{result="failed"} 1' in text
    assert 'robovlms_requests_total{result="ok"} 1' in text
