"""`scripts/serve.py` from its command line to SIGTERM."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from served import SINGLE, chunks, close, config_of, observation, served

from robovlms.client import PolicyClient
from robovlms.errors import UserError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "serve.py"


def seen(step):
    found = observation(step)
    return {**found.frames, "instruction": found.instruction}


@pytest.mark.slow
def test_one_line_serves_a_run_folder_says_so_and_ends_on_sigterm():
    command = [sys.executable, str(SCRIPT), f"checkpoint={SINGLE}", "port=0", "engine.device=cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ROBOVLMS_TOKEN": "correct-horse"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    line = server.stdout.readline()
    try:
        assert "(openpi) calvin_perform_nano: sees" in line, server.stderr.read() if server.poll() is not None else line
        for fact in ("side 32 px", "remembers 4", "3 actions of dx, dy, dz", "at 30 Hz"):
            assert fact in line
        with PolicyClient(line.split()[1], token="correct-horse") as policy:
            close(policy.act(seen(0)), chunks(config_of(SINGLE), [0])[0])
            server.send_signal(signal.SIGTERM)
            assert server.wait(20) == 0
            with pytest.raises(ConnectionError, match="1001"):
                policy.act(seen(1))
    finally:
        server.kill()
        server.communicate()


WRONG = {
    "no such run": (["checkpoint=/nowhere"], "/nowhere"),
    "no checkpoint": ([], "checkpoint"),
    "open to a network": ([f"checkpoint={SINGLE}", "host=0.0.0.0"], "token"),
    "half a key pair": ([f"checkpoint={SINGLE}", "tls_key=x"], "tls_certificate"),
    "no certificate": ([f"checkpoint={SINGLE}", "port=0", "tls_key=/x", "tls_certificate=/y"], "tls_key=/x"),
    "a source that it has not": ([f"checkpoint={SINGLE}", "source=bridge"], "calvin"),
    "real time with a head that cannot": ([f"checkpoint={SINGLE}", "execution=real_time"], "flow"),
    "more steps than a chunk has": ([f"checkpoint={SINGLE}", "execution=chunk", "execute_steps=9"], "1..3"),
    "a view without a name": ([f"checkpoint={SINGLE}", "~protocol.views.wrist"], "protocol.views.wrist"),
    "a gripper that does nothing": ([f"checkpoint={SINGLE}", "protocol.gripper_open=-1"], "gripper_closed"),
    "a port that is none": ([f"checkpoint={SINGLE}", "port=70000"], "65535"),
    "a protocol that is none": ([f"checkpoint={SINGLE}", "protocol=opempi"], "openpi"),
}


@pytest.mark.extended
@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_served_is_refused_with_the_option_to_change(what):
    arguments, named = WRONG[what]
    command, environment = (
        [sys.executable, str(SCRIPT), *arguments],
        os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])},
    )
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert ended.returncode == 2, ended.stderr
    assert named in ended.stderr


COMPILED = """
import numpy as np
import served as server
from concurrent.futures import ThreadPoolExecutor
from served import SINGLE, chunks, config_of, observation, served
from torch._dynamo.utils import counters
from robovlms.client import PolicyClient

def seen(step):
    return {**observation(step).frames, "instruction": observation(step).instruction}

server.PATIENCE_S = 240.0
with served(config_of(SINGLE, "engine.compile=true", "engine.max_batch_size=3")) as (address, service):
    ready = dict(counters["stats"])
    robots = [PolicyClient(address) for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        for step, expected in enumerate(chunks(config_of(SINGLE), range(6))):
            asking = robots[: 1 + step % 3]
            found = list(threads.map(lambda robot: robot.act(seen(step)), asking))
            np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-5)
    later = counters["stats"]["unique_graphs"] - ready["unique_graphs"]
    print("compiled:", ready["unique_graphs"] > 0, "later:", later)
"""


@pytest.mark.extended
def test_a_compiled_policy_is_warm_when_the_server_is_ready_and_answers_the_same():
    """In a process without run-time checks of shapes, which torch does not compile; batches of one to three robots."""
    paths = [ROOT, ROOT / "tests", ROOT / "tests" / "serving"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", COMPILED]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "compiled: True later: 0"


@pytest.mark.slow
def test_a_port_that_is_taken_is_named():
    with served(config_of(SINGLE)) as (address, _):
        port = address.rpartition(":")[2]
        for protocol in ("openpi", "groot", "lerobot"):
            with (
                pytest.raises((OSError, UserError), match=port),
                served(config_of(SINGLE, f"protocol={protocol}", f"port={port}")),
            ):
                pass


def test_connections_are_encrypted_where_there_is_a_certificate(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    config = config_of(SINGLE, f"tls_certificate={certificate}", f"tls_key={key}")
    with served(config) as (address, _):
        assert address.startswith("wss://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        with PolicyClient(address, tls=trusted) as policy:
            close(policy.act(seen(0)), chunks(config, [0])[0])
        with pytest.raises(ConnectionError, match="certificate"):
            PolicyClient(address)


def test_a_gripper_of_the_clients_is_converted_and_told():
    config = config_of(SINGLE, "protocol.gripper_closed=1", "protocol.gripper_open=0")
    with served(config) as (address, _):
        with PolicyClient(address, environment={"gripper_closed": 1, "gripper_open": 0}) as policy:
            found, expected = policy.act(seen(0)), chunks(config, [0])[0]
            close(found[:, :-1], expected[:, :-1])
            close(found[:, -1], (1 - expected[:, -1]) / 2)
        with pytest.raises(UserError, match=r"protocol\.gripper_closed=-1"):
            PolicyClient(address, environment={"gripper_closed": -1.0, "gripper_open": 1.0})
