"""One evaluation by several processes of a launch, any of which may be killed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import line_world_share
import psutil
import pytest
from torch.distributed import TCPStore

from robovlms.evaluation.folder import journals
from robovlms.evaluation.rollouts import run_episodes

HERE = {"checkpoint": "a"}
STARTED = []
SCRIPT = Path(line_world_share.__file__)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{SCRIPT.parents[2]}:{SCRIPT.parent}"}


@pytest.fixture(autouse=True)
def _leave_nobody_behind():
    """End what a failed test has left running."""
    yield
    for process in STARTED:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    STARTED.clear()


def launch(processes, *arguments):
    """Start a launch of the script by torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return start([sys.executable, *torchrun, str(SCRIPT), *map(str, arguments)], ENVIRONMENT)


def start(command, environment):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    STARTED.append(subprocess.Popen(command, env=environment, start_new_session=True, **pipes))
    return STARTED[-1]


def finish(process, status=0):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == status, output
    return output


def played(folder):
    """Return scene, seed and kind of instruction of every line of every journal."""
    lines = [json.loads(line) for path in journals(folder) for line in path.read_text().splitlines()[1:]]
    return sorted((line["scene"], line["seed"], line["language"]) for line in lines)


def wait_for_results(process, folder, count):
    deadline = time.monotonic() + 60
    while len(played(folder)) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def planned(episodes):
    return sorted((e.scene, e.seed, e.language.value) for e in line_world_share.plan(episodes))


def read_results(folder, episodes):
    """Return the results on disk in the order of the plan; nothing is left to be played."""
    plan = line_world_share.plan(episodes)
    results = run_episodes(must_not_start, plan, folder=folder, conditions=HERE)
    return [replace(result, seconds=0.0) for result in results]


def must_not_start():
    raise AssertionError("an episode was lost")


def alone(folder, episodes):
    folder.mkdir()
    results = run_episodes(
        lambda: line_world_share.start(0), line_world_share.plan(episodes), folder=folder, conditions=HERE
    )
    return [replace(result, seconds=0.0) for result in results]


@pytest.mark.slow
def test_two_processes_play_every_episode_once_and_have_the_results_of_one(tmp_path):
    output = finish(launch(2, tmp_path / "two", 0.05, 20))
    assert "rank000 has 42 results" in output
    assert "rank001 has 42 results" in output
    assert [path.name for path in journals(tmp_path / "two")] == ["episodes.rank000.jsonl", "episodes.rank001.jsonl"]
    assert all(len(path.read_text().splitlines()) > 5 for path in journals(tmp_path / "two"))
    assert played(tmp_path / "two") == planned(20)
    assert read_results(tmp_path / "two", 20) == alone(tmp_path / "one", 20)


@pytest.mark.slow
def test_more_processes_than_episodes_end_well(tmp_path):
    output = finish(launch(3, tmp_path / "run", 0.1, 1))
    assert output.count("has 4 results") == 3
    finish(launch(3, tmp_path / "run", 0.1, 1))  # everything is done
    assert played(tmp_path / "run") == planned(1)


@pytest.mark.extended
@pytest.mark.parametrize("whole_launch", [False, True])
def test_a_killed_launch_goes_on_with_another_number_of_processes_and_plays_nothing_twice(tmp_path, whole_launch):
    folder = tmp_path / "run"
    process = launch(2, folder, 0.2, 20)
    wait_for_results(process, folder, 6)
    family = psutil.Process(process.pid).children(recursive=True)
    if whole_launch:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        family[0].kill()
    process.communicate(timeout=60)
    assert process.returncode != 0
    psutil.wait_procs(family, timeout=30)
    before = played(folder)
    assert 6 <= len(before) < 42
    finish(launch(3, folder, 0, 20))
    assert played(folder) == planned(20)
    finish(launch(1, folder, 0, 20))
    assert read_results(folder, 20) == alone(tmp_path / "one", 20)


def rank(number, port, folder, lost_s):
    """Start a process of a launch by hand, as on a machine of its own; the store is this test's."""
    given = {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    given |= {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return start([sys.executable, str(SCRIPT), str(folder), "0.3", "10", str(lost_s)], ENVIRONMENT | given)


@pytest.mark.extended
@pytest.mark.parametrize("killed", [0, 1])
def test_what_a_process_had_claimed_when_its_machine_died_is_played_by_the_others(tmp_path, killed):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    folder = tmp_path / "run"
    processes = [rank(number, store.port, folder, 3) for number in range(2)]
    wait_for_results(processes[0], folder, 4)
    processes[killed].kill()
    assert "has 22 results" in finish(processes[1 - killed])
    assert played(folder) == planned(10)


@pytest.mark.slow
def test_a_launch_whose_store_is_gone_says_how_to_go_on(tmp_path):
    server = start([sys.executable, "-c", STORE], ENVIRONMENT)
    port = int(server.stdout.readline())
    process = rank(0, port, tmp_path / "run", 3)
    wait_for_results(process, tmp_path / "run", 2)
    server.kill()
    output = finish(process, status=1)
    assert "the store of this launch is gone" in output
    assert "goes on where it stopped when its command is repeated" in output


STORE = """
import time

from torch.distributed import TCPStore

store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
time.sleep(100)
"""
