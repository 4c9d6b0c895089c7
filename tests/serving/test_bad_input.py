"""What clients get wrong, over every wire: an error in the protocol's own form, a line in the log, and no harm done."""

from __future__ import annotations

import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import grpc
import numpy as np
import pytest
import zmq
from lerobot_messages import RemotePolicyConfig, TimedObservation, of_lerobot, unpickled
from served import SINGLE, close, config_of, served
from test_openpi import Plain
from test_parity import observe
from test_protocols import GR00TClient, LeRobotClient, NewGR00TClient, StarVLAClient, VLAEvalClient
from test_service import ENGINE, SPEC, alone
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from robovlms.registry import PROTOCOLS
from robovlms.serving.service import Service

TOKEN = "correct-horse"  # of nobody
FEATURES = {f"observation.images.{view}": {"dtype": "image", "shape": [32, 32, 3]} for view in ("side", "wrist")}
FEATURES["observation.state"] = {"dtype": "float32", "shape": [2], "names": ["a", "b"]}


class RefusedError(Exception):
    """An error in the protocol's own form."""


class OpenPIRobot:
    def __init__(self, address):
        self.client = Plain(address)

    def act(self, frames, proprio, text):
        answer = self.client.ask({**frames, "instruction": text, "proprio": proprio})
        if isinstance(answer, str):
            raise RefusedError(answer)
        return answer["actions"]

    def close(self):
        self.client.socket.close()


class StarVLARobot(StarVLAClient):
    def act(self, frames, proprio, text):
        answer = self.ask([{"image": list(frames.values()), "lang": text, "state": proprio}])
        if not answer["ok"]:
            raise RefusedError(answer["error"]["message"])
        return answer["data"]["actions"][0]


class VLAEvalRobot(VLAEvalClient):
    def act(self, frames, proprio, text):
        answer = self.ask("observation", {"images": frames, "task_description": text, "states": proprio})
        if answer["type"] == "error":
            raise RefusedError(answer["payload"]["error"])
        return answer["payload"]["actions"][None]


class GR00TRobot(GR00TClient):
    def act(self, frames, proprio, text):
        video = {view: np.asarray(frame)[None, None] for view, frame in frames.items()}
        state = {
            name: np.full((1, 1, 1), value, np.float32) for name, value in zip(("p0", "p1"), proprio, strict=False)
        }
        observation = {"video": video, "state": state, "language": {"task": [[text]]}}
        answer = self.ask("get_action", {"observation": observation})
        if isinstance(answer, dict):
            raise RefusedError(answer["error"])
        return np.concatenate(list(answer[0].values()), axis=-1)[0]


class NewGR00TRobot(GR00TRobot, NewGR00TClient):
    codec = NewGR00TClient.codec


class LeRobotRobot(LeRobotClient):
    def __init__(self, address, **metadata):
        super().__init__(address, FEATURES, **metadata)

    def act(self, frames, proprio, text):
        seen = {**frames, **dict(zip(("a", "b"), proprio, strict=False)), "task": text}
        try:
            self.send(of_lerobot(TimedObservation(seen)))
            chunk = self.call("GetActions", "Empty", "Actions").data
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            raise RefusedError(error.details()) from error
        return np.stack([action.action.numpy() for action in unpickled(chunk)])


ROBOTS = {
    "openpi": [OpenPIRobot],
    "starvla": [StarVLARobot],
    "vla_eval": [VLAEvalRobot],
    "groot": [GR00TRobot, NewGR00TRobot],
    "lerobot": [LeRobotRobot],
}


def seen(step):
    """Return what a robot sees, as the policy with proprioception reads it."""
    found = observe(step)
    return {view: np.asarray(found.frames[view]) for view in ("side", "wrist")}, list(found.proprio), found.instruction


FRAMES, PROPRIO, TEXT = seen(0)
WRONG = {
    "wrong keys": ({"camera": FRAMES["side"]}, PROPRIO, TEXT),
    "no views": ({}, PROPRIO, TEXT),
    "a missing view": ({"side": FRAMES["side"]}, PROPRIO, TEXT),
    "another shape": ({**FRAMES, "side": np.zeros((2, 32, 32, 3), np.uint8)}, PROPRIO, TEXT),
    "another number of channels": ({**FRAMES, "side": np.zeros((32, 32, 5), np.uint8)}, PROPRIO, TEXT),
    "an empty picture": ({**FRAMES, "side": np.zeros((0, 32, 3), np.uint8)}, PROPRIO, TEXT),
    "another type": ({**FRAMES, "side": np.full((32, 32, 3), 300, np.int64)}, PROPRIO, TEXT),
    "negative pixels": ({**FRAMES, "side": np.full((32, 32, 3), -0.5, np.float32)}, PROPRIO, TEXT),
    "pixels that are no numbers": ({**FRAMES, "side": np.full((32, 32, 3), np.nan, np.float32)}, PROPRIO, TEXT),
    "proprioception that is NaN": (FRAMES, [float("nan"), 0.0], TEXT),
    "proprioception that is infinite": (FRAMES, [0.0, float("inf")], TEXT),
    "proprioception of another length": (FRAMES, [0.0], TEXT),
    "an empty instruction": (FRAMES, PROPRIO, ""),
    "an endless instruction": (FRAMES, PROPRIO, "open " * 2000),
}


@pytest.fixture(scope="module", params=PROTOCOLS.names())
def server(request):
    config = config_of(SINGLE, f"protocol={request.param}")
    with served(config, Service(ENGINE, SPEC, config)) as (address, service):
        yield request.param, address, service


def refused(service):
    return service.metrics._counts["refused"]


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_logged_and_counted_and_leaves_the_session_as_it_was(server, what, caplog):
    name, address, service = server
    expected = alone(0, 1)
    for make in ROBOTS[name]:
        with closing(make(address)) as robot:
            before = refused(service)
            close(robot.act(*seen(0))[:1], expected[0][:1])
            caplog.clear()
            with caplog.at_level(logging.WARNING), pytest.raises(RefusedError) as caught:
                robot.act(*WRONG[what])
            assert not re.search("internal|Traceback", str(caught.value))
            (line,) = [each for each in caplog.records if each.name.startswith("robovlms.serving")]
            assert line.levelname == "WARNING"
            assert line.getMessage().split(": ", 1)[1][:60] in str(caught.value)
            assert refused(service) == before + 1
            close(robot.act(*seen(1))[:1], expected[1][:1])


def test_every_protocol_has_robots_that_get_things_wrong():
    assert set(ROBOTS) == set(PROTOCOLS.names())


TOO_LARGE = {  # what a client is told, or what it sees where the transport ends the connection
    "openpi": (ConnectionClosed, "1009"),
    "starvla": (ConnectionClosed, "1009"),
    "vla_eval": (ConnectionClosed, "1009"),
    "groot": (zmq.Again, None),  # the transport says nothing
    "lerobot": (RefusedError, "larger than max_message_mb=0.1"),
}


@pytest.mark.parametrize("name", PROTOCOLS.names())
def test_a_message_that_is_too_large_is_refused_and_others_go_on(name):
    config = config_of(SINGLE, f"protocol={name}", "max_message_mb=0.1")
    large = np.zeros((300, 300, 3), np.uint8)
    error, words = TOO_LARGE[name]
    with served(config, Service(ENGINE, SPEC, config)) as (address, _):
        make = ROBOTS[name][0]
        with closing(make(address)) as other, closing(make(address)) as robot:
            if name == "groot":
                robot.socket.setsockopt(zmq.RCVTIMEO, 300)
            with pytest.raises(error, match=words):
                robot.act({"side": large, "wrist": large}, PROPRIO, TEXT)
            close(other.act(*seen(0))[:1], alone(0)[0][:1])


@pytest.mark.parametrize("name", PROTOCOLS.names())
def test_a_missing_or_wrong_token_is_refused_in_the_protocols_form(name, caplog):
    config = config_of(SINGLE, f"protocol={name}", f"token={TOKEN}")
    with served(config, Service(ENGINE, SPEC, config)) as (address, _), caplog.at_level(logging.WARNING):
        if name == "groot":
            with closing(GR00TRobot(address)) as robot:
                assert robot.ask("reset") == {"error": "Unauthorized: Invalid API token"}
                assert robot.ask("reset", api_token="wrong") == {"error": "Unauthorized: Invalid API token"}
                assert robot.ask("reset", api_token=TOKEN) == {}
        elif name == "lerobot":
            with pytest.raises(grpc.RpcError) as caught:
                LeRobotRobot(address, authorization="Bearer wrong")
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            LeRobotRobot(address, authorization=f"Bearer {TOKEN}").close()
        else:
            with pytest.raises(InvalidStatus, match="401"):
                connect(address, additional_headers={"Authorization": "Bearer wrong"})
            connect(address, additional_headers={"Authorization": f"Bearer {TOKEN}"}).close()
        assert any("oken" in each.getMessage() for each in caplog.records)


@pytest.mark.parametrize("name", ["lerobot", "vla_eval"])  # the others have no hello
def test_a_second_hello_leaves_the_client_as_it_was(name):
    config, expected = config_of(SINGLE, f"protocol={name}"), alone(0, 1)
    with served(config, Service(ENGINE, SPEC, config)) as (address, _), closing(ROBOTS[name][0](address)) as robot:
        close(robot.act(*seen(0))[:1], expected[0][:1])
        if name == "vla_eval":
            assert robot.ask("hello", {"protocol_version": 1})["type"] == "error"
        else:
            again = of_lerobot(RemotePolicyConfig(FEATURES))
            robot.call("SendPolicyInstructions", "PolicySetup", "Empty", data=again)
        close(robot.act(*seen(1))[:1], expected[1][:1])


def test_every_request_that_is_taken_is_answered_when_the_server_ends_under_load():
    config = config_of(SINGLE)
    with ThreadPoolExecutor(8) as threads:
        with served(config, Service(ENGINE, SPEC, config)) as (address, service):
            robots = [OpenPIRobot(address) for _ in range(8)]
            for robot in robots:
                robot.act(*seen(0))

            def play(robot):
                """Act until the server says that it goes away; an answer that does not arrive is an error."""
                for step in range(10_000):
                    try:
                        robot.act(*seen(step % 3))
                    except ConnectionClosed as closed:
                        return closed.rcvd.code, step
                raise AssertionError("the server never ended")

            playing = [threads.submit(play, robot) for robot in robots]
            time.sleep(0.2)
        ended = [each.result(timeout=20) for each in playing]
    assert [code for code, _ in ended] == [1001] * 8
    assert service.metrics._counts["ok"] == 8 + sum(count for _, count in ended)
    assert not service.is_ready
