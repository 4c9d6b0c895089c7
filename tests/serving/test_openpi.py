"""openpi's websocket: what its own client gets, what is refused, and that nobody disturbs anybody."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from served import MIXTURE, SINGLE, chunks, close, config_of, observation, run_client, served
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from robovlms.errors import UserError
from robovlms.policy.manifest import checkpoint_digest
from robovlms.policy.spec import PolicySpec
from robovlms.serving.codecs import OPENPI

CONFIG = config_of()


@pytest.fixture(scope="module")
def server():
    with served(CONFIG) as found:
        yield found


def message(step, **more):
    seen = observation(step)
    frames = {"observation/image": seen.frames["side"], "observation/wrist_image": seen.frames["wrist"]}
    return frames | {"prompt": seen.instruction, "observation/state": np.zeros(8)} | more


class Plain:
    """A client written from the facts of the wire."""

    def __init__(self, address, **options):
        self.socket = connect(address, compression=None, max_size=None, **options)
        self.metadata = OPENPI.unpack(self.socket.recv())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def ask(self, values):
        self.socket.send(values if isinstance(values, bytes | str) else OPENPI.pack(values))
        answer = self.socket.recv()
        return answer if isinstance(answer, str) else OPENPI.unpack(answer)


def page(address, path, **headers):
    request = urllib.request.Request(address.replace("ws", "http", 1) + path, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def test_a_client_gets_the_chunks_of_a_session_that_is_alone(server):
    with Plain(server[0]) as client:
        for step, expected in enumerate(chunks(CONFIG, range(6))):
            answer = client.ask(message(step))
            close(answer["actions"], expected)
            assert answer["server_timing"]["infer_ms"] > 0


def test_our_own_names_and_a_reset_are_understood(server):
    expected = chunks(CONFIG, range(2))
    with Plain(server[0]) as client:
        client.ask(message(5))
        for step in range(2):
            seen = observation(step)
            answer = client.ask({**seen.frames, "instruction": seen.instruction, "reset": step == 0})
            close(answer["actions"], expected[step])


def test_the_metadata_carry_the_spec(server, tmp_path):
    with Plain(server[0]) as client:
        (tmp_path / "spec.json").write_text(json.dumps(client.metadata["policy_spec"]))
    assert PolicySpec.load(tmp_path / "spec.json") == server[1].spec
    assert (client.metadata["chunk_size"], client.metadata["action"]["control_hz"]) == (3, 30)


@pytest.mark.slow
def test_clients_at_once_each_get_the_actions_of_a_session_that_is_alone(server):
    orders = [list(np.random.default_rng(seed).integers(0, 20, 8)) for seed in range(8)]

    def play(order):
        with Plain(server[0]) as client:
            return [client.ask(message(int(step)))["actions"] for step in order]

    with ThreadPoolExecutor(8) as threads:
        played = list(threads.map(play, orders))
    for order, found in zip(orders, played, strict=True):
        for actions, expected in zip(found, chunks(CONFIG, [int(step) for step in order]), strict=True):
            np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)
    assert max(server[1].metrics._values["robovlms_batch_size", ""]) > 1


WRONG = {
    "no map": [1, 2],
    "nothing": {"prompt": "x"},
    "a view is missing": {key: value for key, value in message(0).items() if "wrist" not in key},
    "no instruction": {key: value for key, value in message(0).items() if key != "prompt"},
    "an empty instruction": message(0, prompt=" "),
    "an instruction that is a number": message(0, prompt=3),
    "an endless instruction": message(0, prompt="open " * 100_000),
    "a picture of another shape": message(0) | {"observation/image": np.zeros((2, 40, 40, 3), np.uint8)},
    "a picture of another type": message(0) | {"observation/image": np.full((40, 40, 3), -3.0)},
    "a text for a picture": message(0) | {"observation/image": "x"},
    "garbage": b"\xc1garbage",
    "half a message": OPENPI.pack(message(0))[:-9],
    "an array of objects": OPENPI.pack(message(0)).replace(b"|u1", b"|O8"),
    "text": "hello",
    "nothing at all": b"",
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_answered_with_a_text_and_the_session_is_as_it_was(server, what):
    expected = chunks(CONFIG, range(2))
    with Plain(server[0]) as client:
        close(client.ask(message(0))["actions"], expected[0])
        answer = client.ask(WRONG[what])
        assert isinstance(answer, str)
        assert "Traceback" not in answer
        close(client.ask(message(1))["actions"], expected[1])


ENVIRONMENTS = {
    "rate": ({"control_hz": 20}, r"control_hz: policy 30\.0.*20"),
    "rotation": ({"rotation": "axis_angle"}, "rotation: policy euler_increment"),
    "gripper": ({"gripper_open": -1.0, "gripper_closed": 1.0}, "protocol.gripper_closed=1 protocol.gripper_open=-1"),
    "frame": ({"frame": "base"}, "data.convert.frame=base"),
    "views": ({"views": ["side"]}, "has no wrist"),
    "a field that is none": ({"hz": 20}, "hz is no field"),
    "a word that is none": ({"frame": "moon"}, "must be one of"),
    "a number that is none": ({"control_hz": "fast"}, "must be a number"),
    "views that are none": ({"views": 3}, "list of names"),
    "no map": (3, "must be a map"),
}


@pytest.mark.parametrize("what", ENVIRONMENTS)
def test_an_environment_that_means_something_else_is_refused_with_both_sides(server, what):
    environment, expected = ENVIRONMENTS[what]
    with Plain(server[0]) as client:
        answer = client.ask({"environment": environment})
    assert isinstance(answer, str)
    with pytest.raises(UserError, match="(?s)" + expected):
        raise UserError(answer)


def test_an_environment_that_fits_is_taken(server):
    with Plain(server[0]) as client:
        contract = client.metadata["policy_spec"]["sources"]["calvin"]["contract"]
        answer = client.ask({"environment": {**contract, "views": ["wrist", "side", "top"]}})
    assert answer["policy_spec"] == client.metadata["policy_spec"]


def test_the_pages_tell_how_the_server_is(server):
    with Plain(server[0]) as client:
        client.ask(message(0))
        assert page(server[0], "/healthz") == "OK\n"
        assert json.loads(page(server[0], "/spec"))["chunk_size"] == 3
        metrics = page(server[0], "/metrics")
    for line in (
        'robovlms_requests_total{result="ok"}',
        'robovlms_stage_seconds{stage="policy",quantile="0.99"}',
        'robovlms_batch_size{quantile="0.5"}',
        "robovlms_batch_size_count",
        "robovlms_sessions 1",
    ):
        assert line in metrics


def test_a_page_of_a_browser_cannot_connect(server):
    with pytest.raises(InvalidStatus, match="403"):
        connect(server[0], origin="http://evil.example")


def test_without_the_token_nobody_is_let_in():
    with served(config_of(SINGLE, "token=correct-horse")) as (address, _):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Api-Key "}):
            with pytest.raises(InvalidStatus, match="401"):
                connect(address, additional_headers=headers)
            for path in ("/spec", "/metrics", "/nothing"):
                with pytest.raises(urllib.error.HTTPError, match="401"):
                    page(address, path, **headers)
        assert page(address, "/healthz") == "OK\n"
        for scheme in ("Bearer", "Api-Key"):
            with Plain(address, additional_headers={"Authorization": f"{scheme} correct-horse"}) as client:
                assert "actions" in client.ask(message(0))
        with Plain(f"{address}/?token=correct-horse") as client:
            assert "actions" in client.ask(message(0))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "robot.local"])
def test_other_machines_may_connect_only_with_a_token(host):
    with pytest.raises(UserError, match=r"token=\.\.\."):
        config_of(SINGLE, f"host='{host}'")
    config_of(SINGLE, f"host='{host}'", "token=correct-horse")


def test_a_message_that_is_too_large_ends_its_connection_alone():
    with served(config_of(SINGLE, "max_message_mb=0.1")) as (address, _), Plain(address) as other:
        with Plain(address) as client:
            client.socket.send(bytes(200_000))
            with pytest.raises(ConnectionClosed, match="1009"):
                client.socket.recv()
        assert "actions" in other.ask(message(0))


def test_more_sessions_than_there_is_room_for_are_turned_away_until_one_leaves():
    with served(config_of(SINGLE, "max_sessions=1")) as (address, service):
        with Plain(address), connect(address) as second:
            assert "max_sessions" in second.recv()
            with pytest.raises(ConnectionClosed, match="1013"):
                second.recv()
        until(lambda: not service._clients)
        with Plain(address) as client:
            assert "actions" in client.ask(message(0))


def until(happens, seconds=10.0):
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_silent_client_is_let_go():
    with served(config_of(SINGLE, "idle_timeout_s=0.3")) as (address, service), Plain(address) as client:
        with pytest.raises(ConnectionClosed, match="1001"):
            client.socket.recv(timeout=10)
        until(lambda: not service._clients)


@pytest.mark.slow
def test_a_client_that_dies_or_does_not_listen_delays_nobody(server):
    deaf = Plain(server[0])
    for _ in range(50):  # answers pile up, and are not read
        deaf.socket.send(OPENPI.pack(message(0)))
    dying = Plain(server[0])
    dying.socket.send(OPENPI.pack(message(0)))
    dying.socket.socket.close()
    with Plain(server[0]) as client:
        taken = []
        for step in range(20):
            started = time.perf_counter()
            client.ask(message(step))
            taken.append(time.perf_counter() - started)
    deaf.socket.close()
    assert np.median(taken) < 0.5


@pytest.mark.parametrize("execution", ["first", "chunk", "ensemble"])
def test_the_server_executes_chunks_where_it_is_asked_to(execution):
    config = config_of(SINGLE, f"execution={execution}", f"execute_steps={2 if execution == 'chunk' else 1}")
    alone = chunks(config, range(4))
    with served(config) as (address, _), Plain(address) as client:
        assert client.metadata["chunk_size"] == 1
        found = [client.ask(message(step))["actions"] for step in range(4)]
    assert all(actions.shape == (1, 7) for actions in found)
    close(found[0][0], alone[0][0])
    if execution == "chunk":
        close(found[1][0], alone[0][1])
        close(found[3][0], alone[2][1])
    elif execution == "first":
        close(found[3][0], alone[3][0])


def test_a_source_of_a_mixture_speaks_its_own_contract():
    with pytest.raises(UserError, match="source=None"), served(config_of(MIXTURE)):
        pass
    config = config_of(MIXTURE, "source=arm")
    with served(config) as (address, _), Plain(address) as client:
        actions = client.ask(message(0))["actions"]
    assert actions.shape == (3, 2)
    close(actions, chunks(config, [0])[0])


def test_a_server_that_ends_is_not_ready_and_takes_nobody():
    with served(CONFIG) as (address, service):
        service.is_ready = False
        with pytest.raises(urllib.error.HTTPError, match="503"):
            page(address, "/healthz")
        with connect(address) as client:
            assert "about to end" in client.recv()
            with pytest.raises(ConnectionClosed, match="1013"):
                client.recv()


def test_a_message_that_comes_while_the_server_ends_is_answered():
    with served(CONFIG) as (address, _):
        client = Plain(address)
        client.socket.send(OPENPI.pack(message(0)))
        time.sleep(0.05)
    assert "actions" in OPENPI.unpack(client.socket.recv())
    with pytest.raises(ConnectionClosed, match="1001"):
        client.socket.recv()


def test_openpis_own_client_and_broker_get_the_actions(server):
    host, port = server[0].removeprefix("ws://").rsplit(":", 1)
    printed = json.loads(run_client("ask_openpi.py", host, port))
    assert printed["spec"] == server[1].spec.to_json()
    alone = chunks(CONFIG, range(2))
    for found, expected in zip(printed["chunks"], alone, strict=True):
        close(np.array(found), expected)
    fresh = chunks(CONFIG, [0, 3])
    close(np.array(printed["steps"][:3]), fresh[0])
    close(np.array(printed["steps"][3]), fresh[1][0])
    assert "wrist" in printed["error"]


def test_a_mixtures_robot_shows_what_its_source_has_and_is_told_whose_actions_it_gets():
    config = config_of(MIXTURE, "source=arm")
    with served(config) as (address, _), Plain(address) as client:
        said = client.metadata["server"]
        assert (said["source"], said["views"], said["execution"]) == ("arm", ["side"], None)
        assert isinstance(client.ask({"environment": {"views": ["side"], "control_hz": 10}}), dict)
        assert "side" in client.ask({"environment": {"views": ["wrist"]}})
        seen = observation(0)
        close(
            client.ask({"side": seen.frames["side"], "instruction": seen.instruction})["actions"],
            chunks(config, [0])[0],
        )


def test_an_empty_instruction_is_answered_where_the_client_says_that_it_means_it(server):
    seen = observation(0)
    silent = {**seen.frames, "instruction": ""}
    with Plain(server[0]) as client:
        assert "instruction is empty" in client.ask(silent)
    with Plain(server[0]) as client:
        assert "may_be_silent" in client.ask({"environment": {"may_be_silent": "yes"}})
        client.ask({"environment": {"may_be_silent": True}})
        assert client.ask(silent)["actions"].shape == (3, 7)
    with Plain(server[0]) as client:
        assert "instruction is empty" in client.ask(silent)


def test_the_metadata_say_which_checkpoint_answers_and_where(server):
    with Plain(server[0]) as client:
        said = client.metadata["server"]
    assert said["checkpoint_digest"] == checkpoint_digest(SINGLE / "checkpoints" / "step_000002")
    assert (said["device"], said["dtype"], said["execution"], said["execute_steps"]) == ("cpu", "float32", None, 1)
    assert said["versions"].keys() == {"robovlms", "torch"}
