"""The command itself: several processes, signals, and what a killed run leaves behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from calvin_folder import assert_same_state, losses, tiny_run
from composing import completed, composed

from robovlms.commands.train import train
from robovlms.policy.checkpoint import checkpoints

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
HEADS = {"lstm": [], "flow": ["head.num_heads=2"], "diffusion": ["head.num_heads=2"]}
LONG = ["schedule.total=60 step", "trainer.save_every=1 step", "trainer.validate_every=60 step", "data.num_workers=1"]


def start(overrides, launcher=(sys.executable,)):
    command = [*launcher, str(ROOT / "train.py"), *overrides]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, **pipes)


def finish(process):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def wait_for_checkpoint(process, run, step):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(process.communicate()[0])
        if any(int(path.name.removeprefix("step_")) >= step for path in checkpoints(run)):
            return
        time.sleep(0.02)
    pytest.fail("no checkpoint within two minutes")


def assert_no_orphans(family):
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


@pytest.mark.parametrize("head", ["lstm", "flow", "diffusion"])
def test_two_processes_give_the_loss_curve_of_one(calvin_folder, tmp_path, head):
    extra = [f"head={head}", "schedule.total=6 step", "trainer.max_validation_batches=null", *HEADS[head]]
    two = start(tiny_run(calvin_folder, tmp_path / "two", *extra), TORCHRUN)
    output = finish(two)
    assert "2 processes x 4 x 1" in output
    train(completed(composed(*tiny_run(calvin_folder, tmp_path / "one", *extra, "device_batch_size=8"))))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    assert losses(tmp_path / "two", "val/loss") == pytest.approx(losses(tmp_path / "one", "val/loss"), abs=1e-5)


def test_a_run_killed_twice_ends_like_one_that_was_not(calvin_folder, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for step in (3, 9):
        process = start(tiny_run(calvin_folder, killed, *LONG, "trainer.resume=auto"))
        wait_for_checkpoint(process, killed, step)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        assert_no_orphans(family)
    finished = ["schedule.total=14 step", "trainer.save_every=14 step", "trainer.validate_every=60 step"]
    train(completed(composed(*tiny_run(calvin_folder, killed, *finished, "trainer.resume=auto"))))
    train(completed(composed(*tiny_run(calvin_folder, whole, *finished))))
    assert_same_state(killed, whole)
    assert losses(killed) == losses(whole)


def test_sigterm_to_the_whole_group_saves_and_ends_cleanly(calvin_folder, tmp_path):
    run = tmp_path / "run"
    process = start(tiny_run(calvin_folder, run, *LONG, "trainer.save_every=1000 step", "schedule.total=100000 step"))
    deadline = time.monotonic() + 120
    while not ((run / "metrics.jsonl").is_file() and losses(run)) and time.monotonic() < deadline:
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    output = finish(process)
    assert "stopped by SIGTERM" in output
    assert len(checkpoints(run)) == 1
    assert_no_orphans(family)


def ranks_of(process):
    """Wait until the training has begun, and return torchrun's two processes."""
    return [each for each in psutil.Process(process.pid).children() if "train.py" in " ".join(each.cmdline())]


def wait_for_losses(process, run):
    deadline = time.monotonic() + 120
    while not ((run / "metrics.jsonl").is_file() and losses(run)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no step within two minutes"
        time.sleep(0.1)


ENDLESS = ["schedule.total=1000000 step", "trainer.save_every=1000000 step", "trainer.validate_every=1000000 step"]


def test_sigterm_to_the_ranks_of_torchrun_saves_once_and_all_exit_0(calvin_folder, tmp_path):
    run = tmp_path / "run"
    process = start(tiny_run(calvin_folder, run, *ENDLESS), TORCHRUN)
    wait_for_losses(process, run)
    for rank in ranks_of(process):
        rank.send_signal(signal.SIGTERM)
    output = finish(process)
    assert output.count("stopped by SIGTERM") == 1
    assert len(checkpoints(run)) == 1


def test_ranks_end_with_a_checkpoint_when_torchrun_is_killed(calvin_folder, tmp_path):
    run = tmp_path / "run"
    process = start(tiny_run(calvin_folder, run, *ENDLESS), TORCHRUN)
    wait_for_losses(process, run)
    ranks = ranks_of(process)
    process.kill()
    process.wait()
    assert len(ranks) == 2
    assert_no_orphans(ranks)
    assert len(checkpoints(run)) == 1


def test_ctrl_c_saves_and_leaves_no_processes_behind(calvin_folder, tmp_path):
    run = tmp_path / "run"
    process = start(tiny_run(calvin_folder, run, *LONG, *ENDLESS))
    wait_for_losses(process, run)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "stopped by SIGINT" in output
    assert "KeyboardInterrupt" not in output
    assert len(checkpoints(run)) == 1
    assert_no_orphans(family)


def test_two_jobs_of_a_sweep_run_in_one_process(calvin_folder, tmp_path):
    sweep = [*tiny_run(calvin_folder, tmp_path / "sweep", "schedule.total=2 step"), "optimizer.lr=1e-3,1e-4"]
    finish(start(["--multirun", *sweep]))
    jobs = sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert jobs == ["0_lr-0.001", "1_lr-0.0001"]
    assert all(len(checkpoints(tmp_path / "sweep" / job)) == 1 for job in jobs)
