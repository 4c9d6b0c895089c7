"""Our own client: what it gets, what it is told, and that it needs no torch."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from served import SINGLE, chunks, close, config_of, observation, served

from robovlms.client import PolicyClient, RefusedError

CONFIG = config_of(SINGLE)


@pytest.fixture(scope="module")
def address():
    with served(CONFIG) as found:
        yield found[0]


def seen(step):
    found = observation(step)
    return {**found.frames, "instruction": found.instruction}


def test_it_gets_the_chunks_of_a_session_that_is_alone_and_a_reset_begins_anew(address):
    expected = chunks(CONFIG, range(3))
    with PolicyClient(address, environment={"control_hz": 30, "views": ["side", "wrist"]}) as policy:
        assert policy.chunk_size == 3
        assert policy.spec["window_size"] == 4
        for _ in range(2):
            for step in range(3):
                close(policy.act(seen(step)), expected[step])
            policy.reset()


def test_an_environment_that_means_something_else_is_refused_when_it_connects(address):
    with pytest.raises(RefusedError, match=r"control_hz: policy 30\.0, .* 10"):
        PolicyClient(address, environment={"control_hz": 10})


def test_an_observation_that_is_refused_leaves_the_session_as_it_was(address):
    expected = chunks(CONFIG, range(2))
    with PolicyClient(address) as policy:
        policy.act(seen(0))
        with pytest.raises(RefusedError, match="wrist"):
            policy.act({"instruction": "x"})
        close(policy.act(seen(1)), expected[1])


def test_nobody_there_a_wrong_token_and_a_server_that_ends_are_connection_errors():
    with pytest.raises(ConnectionError, match=r"ws://127\.0\.0\.1:1"):
        PolicyClient("ws://127.0.0.1:1", timeout_s=5.0)
    with served(config_of(SINGLE, "token=correct-horse")) as (address, _):
        with pytest.raises(ConnectionError, match="401"):
            PolicyClient(address, token="wrong")
        policy = PolicyClient(address, token="correct-horse")
    with pytest.raises(ConnectionError, match="closed"):
        policy.act(seen(0))


def test_a_server_that_is_too_slow_is_a_timeout(monkeypatch):
    with served(CONFIG) as (address, service):
        policy = PolicyClient(address, timeout_s=0.2)
        predict = service.engine.predict
        monkeypatch.setattr(service.engine, "predict", lambda requests: (time.sleep(1), predict(requests))[1])
        with pytest.raises(TimeoutError, match=r"0\.2 s"):
            policy.act(seen(0))


def test_clients_need_no_torch():
    code = "import sys, robovlms.client; print({'torch', 'hydra', 'transformers'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
