"""One policy, five wires: the same actions for the same observations, and errors in each wire's own form."""

from __future__ import annotations

import json

import grpc
import msgpack
import numpy as np
import pytest
import zmq
from lerobot_messages import RemotePolicyConfig, TimedObservation, of_lerobot, unpickled
from served import SINGLE, chunks, close, config_of, observation, run_client, served
from test_openpi import Plain, message, page
from test_parity import observe
from test_service import ENGINE, SPEC, alone
from websockets.sync.client import connect

from robovlms.errors import UserError
from robovlms.registry import PROTOCOLS
from robovlms.serving.codecs import GROOT, GROOT_ND, VLA_EVAL
from robovlms.serving.pickles import load
from robovlms.serving.protocols.lerobot import MESSAGES
from robovlms.serving.service import Service

STEPS = 5


class OpenPIClient:
    """As openpi-client speaks."""

    def __init__(self, address):
        self.client = Plain(address)

    def act(self, step):
        return self.client.ask(message(step))["actions"]

    def reset(self):
        self.client.ask({"reset": True})

    def wrong(self):
        return self.client.ask({"prompt": "x"})

    def close(self):
        self.client.socket.close()


class VLAEvalClient:
    """As vla-eval speaks."""

    def __init__(self, address):
        self.socket, self.seq = connect(address, compression=None), 0
        self.hello = self.ask("hello", {"harness_version": "0.8.0", "protocol_version": 1})
        self.send("episode_start", {"task": {"name": "x"}})

    def send(self, kind, payload):
        self.seq += 1
        self.socket.send(VLA_EVAL.pack({"type": kind, "payload": payload, "seq": self.seq, "timestamp": 0.0}))

    def ask(self, kind, payload):
        self.send(kind, payload)
        answer = VLA_EVAL.unpack(self.socket.recv())
        assert answer["seq"] == self.seq
        return answer

    def payload(self, step):
        seen = observation(step)
        images = {"agentview": seen.frames["side"], "wrist": seen.frames["wrist"]}
        return {"images": images, "task_description": seen.instruction}

    def act(self, step):
        return self.ask("observation", self.payload(step))["payload"]["actions"][None]

    def reset(self):
        self.send("episode_end", {})
        self.send("episode_start", {"task": {"name": "x"}})

    def wrong(self):
        return self.ask("observation", {"images": {}, "task_description": "x"})["payload"]["error"]

    def close(self):
        self.socket.close()


class StarVLAClient:
    """As starVLA and LoongForge speak."""

    def __init__(self, address):
        self.client = Plain(address)

    def ask(self, examples, **more):
        return self.client.ask({"type": "infer", "request_id": "7", "payload": {"examples": examples}} | more)

    def example(self, step):
        seen = observation(step)
        return {"image": [seen.frames["side"], seen.frames["wrist"]], "lang": seen.instruction}

    def act(self, step):
        answer = self.ask([self.example(step)])
        assert (answer["ok"], answer["request_id"]) == (True, "7")
        return answer["data"]["actions"][0]

    def reset(self):
        assert self.client.ask({"type": "reset", "request_id": 1})["ok"] is True

    def wrong(self):
        return self.ask([{"image": [], "lang": "x"}])["error"]["message"]

    def close(self):
        self.client.socket.close()


class GR00TClient:
    """As GR00T's clients speak up to N1.6."""

    codec = GROOT

    def __init__(self, address):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.REQ)
        self.socket.setsockopt(zmq.RCVTIMEO, 20_000)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(address)

    def ask(self, endpoint, data=None, **more):
        request = {"endpoint": endpoint} | more | ({} if data is None else {"data": data})
        self.socket.send(self.codec.pack(request))
        return self.codec.unpack(self.socket.recv())

    def observation(self, *steps):
        seen = [observation(step) for step in steps]
        video = {
            name: np.stack([each.frames[view] for each in seen])[:, None]
            for view, name in (("side", "image"), ("wrist", "wrist_image"))
        }
        language = {"annotation.human.task_description": [[each.instruction] for each in seen]}
        return {"video": video, "state": {}, "language": language}

    def act(self, step):
        answer = self.ask("get_action", {"observation": self.observation(step), "options": None})
        assert isinstance(answer, list), answer
        return np.concatenate(list(answer[0].values()), axis=-1)[0]

    def reset(self):
        assert self.ask("reset") == {}

    def wrong(self):
        return self.ask("get_action", {"observation": {"video": {}, "language": {"task": [["x"]]}}})["error"]

    def close(self):
        self.context.destroy(linger=0)


class NewGR00TClient(GR00TClient):
    """As those of N1.7 do."""

    codec = GROOT_ND


FEATURES = {
    "observation.images.front": {"dtype": "image", "shape": [40, 40, 3], "names": ["height", "width", "channels"]},
    "observation.images.wrist": {"dtype": "image", "shape": [40, 40, 3], "names": ["height", "width", "channels"]},
    "observation.state": {"dtype": "float32", "shape": [1], "names": ["shoulder.pos"]},
}


class LeRobotClient:
    """As lerobot's RobotClient speaks."""

    def __init__(self, address, features=FEATURES, **metadata):
        own = [("grpc.use_local_subchannel_pool", 1)]  # channels of a process share a connection otherwise
        self.channel = grpc.insecure_channel(address.removeprefix("grpc://"), options=own)
        self.metadata = list(metadata.items())
        self.call("Ready", "Empty", "Empty")
        self.call("SendPolicyInstructions", "PolicySetup", "Empty", data=of_lerobot(RemotePolicyConfig(features)))

    def call(self, name, taken, given, **fields):
        make = self.channel.unary_unary(
            f"/transport.AsyncInference/{name}", MESSAGES[taken].SerializeToString, MESSAGES[given].FromString
        )
        return make(MESSAGES[taken](**fields), timeout=20, metadata=self.metadata)

    def send(self, data, size=50_000):
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        states = [1] + [2] * (len(pieces) - 2) + [3] if len(pieces) > 1 else [3]
        make = self.channel.stream_unary(
            "/transport.AsyncInference/SendObservations",
            MESSAGES["Observation"].SerializeToString,
            MESSAGES["Empty"].FromString,
        )
        stream = (MESSAGES["Observation"](state=s, data=piece) for s, piece in zip(states, pieces, strict=True))
        make(stream, timeout=20, metadata=self.metadata)

    def seen(self, step):
        seen = observation(step)
        return {
            "front": seen.frames["side"],
            "wrist": seen.frames["wrist"],
            "shoulder.pos": 0.5,
            "task": seen.instruction,
        }

    def act(self, step):
        self.send(of_lerobot(TimedObservation(self.seen(step), step)))
        self.answer = self.call("GetActions", "Empty", "Actions").data
        return np.stack([action.action.numpy() for action in unpickled(self.answer)])

    def reset(self):
        self.call("Ready", "Empty", "Empty")

    def wrong(self):
        self.send(of_lerobot(TimedObservation({"shoulder.pos": 0.5, "task": "x"}, 0)))
        with pytest.raises(grpc.RpcError) as caught:
            self.call("GetActions", "Empty", "Actions")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        return caught.value.details()

    def close(self):
        self.channel.close()


CLIENTS = {
    "openpi": [OpenPIClient],
    "vla_eval": [VLAEvalClient],
    "starvla": [StarVLAClient],
    "groot": [GR00TClient, NewGR00TClient],
    "lerobot": [LeRobotClient],
}


@pytest.fixture(scope="module", params=PROTOCOLS.names())
def server(request):
    config = config_of(SINGLE, f"protocol={request.param}", "status_port=0")
    with served(config) as (address, service):
        yield request.param, address, service


def test_the_same_observations_get_the_same_actions_over_every_wire(server):
    name, address, _ = server
    expected = chunks(config_of(SINGLE), range(STEPS))
    for make in CLIENTS[name]:
        client = make(address)
        for step in range(STEPS):
            found = client.act(step)
            close(found, expected[step][: len(found)])
        client.close()


def test_what_is_wrong_is_answered_in_the_wires_own_form_and_the_session_is_as_it_was(server):
    name, address, _ = server
    expected = chunks(config_of(SINGLE), range(2))
    for make in CLIENTS[name]:
        client = make(address)
        client.act(0)
        error = client.wrong()
        assert "views" in error or "side" in error or "robots" in error
        found = client.act(1)
        close(found, expected[1][: len(found)])
        client.close()


@pytest.fixture(scope="module")
def vla_eval():
    with served(config_of(SINGLE, "protocol=vla_eval")) as found:
        yield found[0]


def test_hello_tells_vla_eval_what_the_policy_sees_and_says(vla_eval):
    hello = VLAEvalClient(vla_eval).hello["payload"]
    assert hello["protocol_version"] == 1
    assert {key: spec["format"] for key, spec in hello["action_spec"].items()} == {
        "position": "delta_xyz",
        "rotation": "euler_xyz",
        "gripper": "binary_close_negative",
    }
    assert hello["observation_params"] == {"send_wrist_image": True, "send_state": False, "absolute_action": False}
    assert hello["capabilities"]["policy_spec"]["chunk_size"] == 3
    assert json.loads(page(vla_eval, "/health")) == {"status": "ok"}
    assert json.loads(page(vla_eval, "/config"))["config"]["max_batch_size"] == 32


def test_an_episode_that_begins_forgets_the_last_one():
    def payload(step):
        seen = observe(step)
        images = {"agentview": seen.frames["side"], "wrist": seen.frames["wrist"]}
        return {"images": images, "task_description": seen.instruction, "states": seen.proprio}

    def act(client, **more):
        return client.ask("observation", payload(3) | more)["payload"]["actions"]

    config = config_of(SINGLE, "protocol=vla_eval")
    first, second = alone(3)[0][0], alone(0, 3)[1][0]
    assert abs(first - second).max() > 1e-4
    with served(config, Service(ENGINE, SPEC, config)) as (address, _):
        client = VLAEvalClient(address)
        client.ask("observation", payload(0))
        close(act(client), second)
        client.send("episode_end", {})
        client.send("episode_start", {"task": {}})
        close(act(client), first)
        close(act(client, episode_restart=True), first)


def test_a_second_hello_and_what_is_no_message_are_answered_with_an_error(vla_eval):
    client = VLAEvalClient(vla_eval)
    for kind in ("hello", "dance", "observation"):
        assert client.ask(kind, {"protocol_version": 1})["type"] == "error"
    for data in (b"", b"\xc1", VLA_EVAL.pack([]), VLA_EVAL.pack({"type": "observation", "seq": "x", "payload": {}})):
        client.socket.send(data)
        assert VLA_EVAL.unpack(client.socket.recv())["type"] == "error"
    assert client.act(0).shape == (1, 7)


def test_another_protocol_version_and_no_hello_are_refused(vla_eval):
    with connect(vla_eval) as socket:
        for kind, payload in (("observation", {}), ("hello", {"protocol_version": 2})):
            socket.send(VLA_EVAL.pack({"type": kind, "payload": payload, "seq": 1, "timestamp": 0.0}))
            assert VLA_EVAL.unpack(socket.recv())["type"] == "error"


def test_vla_evals_own_runner_plays_three_episodes(vla_eval):
    found = json.loads(run_client("play_vla_eval.py", vla_eval))
    assert found["episodes"] == 3
    assert found["mismatches"] == []
    expected = chunks(config_of(SINGLE), range(4))
    for actions in found["actions"]:
        for action, chunk in zip(actions, expected, strict=True):
            close(np.array(action), chunk[0])


@pytest.fixture(scope="module")
def groot():
    with served(config_of(SINGLE, "protocol=groot", "token=correct-horse")) as found:
        yield found[0]


def test_groots_endpoints_answer_and_kill_is_not_one_of_them(groot):
    client = GR00TClient(groot)
    token = {"api_token": "correct-horse"}
    assert client.ask("ping", **token) == {"status": "ok", "message": "Server is running"}
    modalities = client.ask("get_modality_config", **token)
    assert modalities["video"]["as_json"]["modality_keys"] == ["image", "wrist_image"]
    assert modalities["action"]["as_json"]["delta_indices"] == [0, 1, 2]
    assert "Unknown endpoint" in client.ask("kill", **token)["error"]
    for wrong in ({}, {"api_token": "wrong"}, {"api_token": 3}):
        assert client.ask("ping", **wrong) == {"error": "Unauthorized: Invalid API token"}
    client.close()


def test_each_row_of_groots_batch_is_a_robot_of_its_own(groot):
    client, token = GR00TClient(groot), {"api_token": "correct-horse"}
    expected = [chunks(config_of(SINGLE), order) for order in ([0, 1], [2, 3])]
    for turn, steps in enumerate(((0, 2), (1, 3))):
        actions, _ = client.ask("get_action", {"observation": client.observation(*steps)}, **token)
        found = np.concatenate(list(actions.values()), axis=-1)
        for robot in range(2):
            np.testing.assert_allclose(found[robot], expected[robot][turn], atol=1e-5)
    assert client.ask("reset", {"options": None}, **token) == {}
    actions, _ = client.ask("get_action", {"observation": client.observation(0)}, **token)
    close(np.concatenate(list(actions.values()), axis=-1)[0], expected[0][0])
    client.close()


GARBAGE = [
    *(b"", b"\xc1", b"\xdd\xff\xff\xff\xff", msgpack.packb([1])),
    *(msgpack.packb({"endpoint": ["x"]}), msgpack.packb({"data": 3})),
]


def test_groot_answers_garbage_with_an_error(groot):
    client = GR00TClient(groot)
    for data in GARBAGE:
        client.socket.send(data)
        assert "error" in GROOT.unpack(client.socket.recv())
    client.close()


def test_groot_has_no_tls(tmp_path):
    config = config_of(SINGLE, "protocol=groot", f"tls_certificate={tmp_path}/a", f"tls_key={tmp_path}/b")
    with pytest.raises(UserError, match="no TLS"), served(config):
        pass


@pytest.fixture(scope="module")
def lerobot():
    with served(config_of(SINGLE, "protocol=lerobot")) as found:
        yield found[0]


def test_lerobots_actions_carry_step_and_time(lerobot):
    client = LeRobotClient(lerobot)
    client.act(7)
    found = unpickled(client.answer)
    assert [each.timestep for each in found] == [7, 8, 9]
    np.testing.assert_allclose([each.timestamp for each in found], 100 + np.arange(3) / 30)
    assert client.call("GetActions", "Empty", "Actions").data == b""
    client.close()


def test_a_robot_without_a_camera_that_the_policy_needs_is_refused(lerobot):
    features = {key: value for key, value in FEATURES.items() if "wrist" not in key}
    with pytest.raises(grpc.RpcError) as caught:
        LeRobotClient(lerobot, features)
    assert "has no wrist" in caught.value.details()


def test_a_hostile_pickle_is_refused_over_the_wire(lerobot):
    client = LeRobotClient(lerobot)
    with pytest.raises(grpc.RpcError) as caught:
        client.send(b"\x80\x02cposix\nsystem\n(X\x04\x00\x00\x00truetR.")
    assert "posix.system" in caught.value.details()
    assert client.act(0).shape == (3, 7)
    client.close()


def test_lerobot_needs_the_token_in_its_metadata():
    with served(config_of(SINGLE, "protocol=lerobot", "token=correct-horse")) as (address, _):
        with pytest.raises(grpc.RpcError) as caught:
            LeRobotClient(address)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        client = LeRobotClient(address, authorization="Bearer correct-horse")
        assert client.act(0).shape == (3, 7)
        client.close()


def test_starvla_takes_several_robots_and_knows_its_source():
    with served(config_of(SINGLE, "protocol=starvla")) as (address, _):
        client = StarVLAClient(address)
        assert client.client.metadata["action_chunk_size"] == 3
        assert client.client.ask({"type": "ping", "request_id": 3}) == {
            "status": "ok", "ok": True, "type": "ping", "request_id": 3,
        }  # fmt: skip
        answer = client.ask([client.example(0), client.example(2)])
        for found, step in zip(answer["data"]["actions"], (0, 2), strict=True):
            np.testing.assert_allclose(found, chunks(config_of(SINGLE), [step])[0], atol=1e-5)
        refused = client.client.ask({"examples": [client.example(0)], "unnorm_key": "bridge"})
        assert "source=calvin" in refused["error"]["message"]
        for wrong in ({"type": "dance"}, {"type": ["infer"]}, {"examples": []}, {"examples": 3}, [1]):
            assert client.client.ask(wrong)["ok"] is False
        client.close()


def test_load_is_what_lerobot_messages_are_read_with():
    assert load(of_lerobot(RemotePolicyConfig(FEATURES))).kind == "RemotePolicyConfig"
