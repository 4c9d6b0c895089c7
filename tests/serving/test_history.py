"""Policies that remember, over every wire: two robots at once, each as if it were alone, through a new episode."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from served import SINGLE, config_of, observation, served
from test_parity import NORMALIZER, SOURCE, make_policy
from test_protocols import CLIENTS
from test_service import SPEC

from robovlms.config.choices import Structure
from robovlms.policy.engine import PolicyEngine
from robovlms.registry import PROTOCOLS
from robovlms.serving.service import Service

W, STEPS = 8, 20
RESETS = [9, 13]  # of the two robots, before these steps: with a full memory, and with the other's going on
HEADS = {Structure.policy_head: "lstm", Structure.interleaved: "mlp"}
PLAY = replace(SPEC.sources["play"], proprio_names=[])


@pytest.fixture(scope="module", params=HEADS)
def remembering(request):
    """An engine, and what two sessions that are alone are given."""
    policy = make_policy("nano", request.param, HEADS[request.param], window_size=W)
    source = replace(SOURCE, name="play", views=["side", "wrist"], proprio_names=[], proprio_dims=[])
    engine = PolicyEngine(policy, [(source, NORMALIZER)], window_size=W)
    return engine, [alone(engine, robot) for robot in range(2)]


def alone(engine, robot):
    session, chunks = engine.open("play"), []
    for step in range(STEPS):
        if step == RESETS[robot]:
            session.reset()
        chunks.append(engine.predict([(session, observation(seen(robot, step)))])[0])
    return chunks


def seen(robot, step):
    """Number what a robot sees at a step."""
    return 100 * robot + step


def test_what_came_before_matters_to_these_policies(remembering):
    engine, expected = remembering
    for robot in range(2):
        fresh = engine.predict([(engine.open("play"), observation(seen(robot, STEPS - 1)))])[0]
        assert np.abs(fresh - expected[robot][-1]).max() > 1e-3


@pytest.mark.parametrize(
    ("protocol", "make"), [(name, make) for name in PROTOCOLS.names() for make in CLIENTS[name]], ids=str
)
def test_two_robots_at_once_get_what_each_would_alone_and_a_reset_forgets_one_of_them(remembering, protocol, make):
    engine, expected = remembering
    config = config_of(SINGLE, f"protocol={protocol}")
    spec = replace(SPEC, window_size=W, sources={"play": PLAY})
    with served(config, Service(engine, spec, config)) as (address, _), ThreadPoolExecutor(2) as threads:
        robots = [make(address) for _ in range(2)]

        def act(robot, step):
            if step == RESETS[robot]:
                robots[robot].reset()
            return robots[robot].act(seen(robot, step))

        for step in range(STEPS):
            for robot, found in enumerate(threads.map(act, range(2), [step] * 2)):
                np.testing.assert_allclose(found, expected[robot][step][: len(found)], rtol=0, atol=1e-5)
        for robot in robots:
            robot.close()
