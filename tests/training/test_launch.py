"""The command itself: several processes, signals, and what a killed run leaves behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from calvin_folder import assert_same_state, losses, tiny_run
from composing import completed, composed
from launching import command, launch

from robovlms.commands.train import train
from robovlms.policy.checkpoint import checkpoints

ROOT = Path(__file__).parents[2]
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    str(ROOT / "train.py"),
]
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
ALONE = {
    "lstm": [],
    "flow": ["head=flow", "head.num_heads=2"],
    "diffusion": ["head=diffusion", "head.num_heads=2"],
    "bf16": ["precision=bf16"],
    "rounded": [],
}  # what one process is given too
LONG = ["schedule.total=60 step", "trainer.save_every=1 step", "trainer.validate_every=60 step", "data.num_workers=1"]
ENDLESS = ["schedule.total=1000000 step", "trainer.save_every=1000000 step", "trainer.validate_every=1000000 step"]


def assert_no_orphans(family):
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


@pytest.fixture(scope="module")
def by_two(calvin_folder, tmp_path_factory):
    """The overrides of runs, what two processes have left of them, and what they said."""
    folder = tmp_path_factory.mktemp("two")
    extra = ["schedule.total=4 step", "trainer.max_validation_batches=null", "trainer.save_every=4 step"]
    runs = {name: tiny_run(calvin_folder, folder / name, *extra, *options) for name, options in ALONE.items()}
    together = [[*run, *["parallel.reduce_dtype=bf16"] * (name == "rounded")] for name, run in runs.items()]
    return runs, folder, launch(2, together, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_two_processes_give_the_loss_curve_of_one(by_two, tmp_path, name):
    runs, folder, output = by_two
    assert "2 processes x 4 x 1" in output
    train(completed(composed(*runs[name], f"output_dir={tmp_path / 'one'}", "device_batch_size=8")))
    for figure in ("train/loss", "val/loss"):
        allowed = 1e-3 if name in ("bf16", "rounded") else 1e-5
        assert losses(folder / name, figure) == pytest.approx(losses(tmp_path / "one", figure), abs=allowed)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [[2], pytest.param([2, 5], marks=pytest.mark.slow)])
def test_a_run_that_is_killed_ends_like_one_that_was_not(calvin_folder, tmp_path, steps):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for step in steps:
        with command(tiny_run(calvin_folder, killed, *LONG, "trainer.resume=auto"), tmp_path) as process:
            process.wait_for(
                lambda step=step: any(int(path.name.removeprefix("step_")) >= step for path in checkpoints(killed))
            )
            _, *workers = process.family()
            os.kill(process.pids[0], signal.SIGKILL)
            assert_no_orphans(workers)
    end = 1 + max(int(path.name.removeprefix("step_")) for path in checkpoints(killed))
    finished = [f"schedule.total={end} step", f"trainer.save_every={end} step", "trainer.validate_every=60 step"]
    train(completed(composed(*tiny_run(calvin_folder, killed, *finished, "trainer.resume=auto"))))
    train(completed(composed(*tiny_run(calvin_folder, whole, *finished))))
    assert_same_state(killed, whole)
    assert losses(killed) == losses(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_group_saves_and_leaves_no_processes_behind(calvin_folder, tmp_path, sent, status):
    run = tmp_path / "run"
    with command(tiny_run(calvin_folder, run, *LONG, *ENDLESS), tmp_path) as process:
        process.wait_for_losses(run)
        family = process.family()
        os.killpg(process.pids[0], sent)
        assert process.statuses(60) == [status], process.output()
        assert_no_orphans(family)
    assert f"stopped by {sent.name}" in process.output()
    assert "KeyboardInterrupt" not in process.output()
    assert len(checkpoints(run)) == 1


@contextmanager
def under_torchrun(data, run):
    """Start an endless run of two processes, and return torchrun and them once they train."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([*TORCHRUN, *tiny_run(data, run, *ENDLESS)], cwd=ROOT, env=ENVIRONMENT, **pipes)
    try:
        deadline = time.monotonic() + 120
        while not ((run / "metrics.jsonl").is_file() and losses(run)):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "no step within two minutes"
            time.sleep(0.1)
        ranks = [each for each in psutil.Process(process.pid).children() if "train.py" in " ".join(each.cmdline())]
        assert len(ranks) == 2
        yield process, ranks
    finally:
        if process.poll() is None:
            for each in psutil.Process(process.pid).children(recursive=True):
                each.kill()
            process.kill()
        process.wait()


@pytest.mark.slow
def test_sigterm_to_the_ranks_of_torchrun_saves_once_and_all_exit_0(calvin_folder, tmp_path):
    run = tmp_path / "run"
    with under_torchrun(calvin_folder, run) as (process, ranks):
        for rank in ranks:
            rank.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert output.count("stopped by SIGTERM") == 1
    assert len(checkpoints(run)) == 1


@pytest.mark.extended
def test_ranks_end_with_a_checkpoint_when_torchrun_is_killed(calvin_folder, tmp_path):
    run = tmp_path / "run"
    with under_torchrun(calvin_folder, run) as (process, ranks):
        process.kill()
        process.wait()
        assert_no_orphans(ranks)
    assert len(checkpoints(run)) == 1


@pytest.mark.extended
def test_torchrun_ends_when_a_rank_is_killed_and_the_other_says_why(calvin_folder, tmp_path):
    with under_torchrun(calvin_folder, tmp_path / "run") as (process, ranks):
        ranks[1].send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        assert_no_orphans(ranks)
    assert process.returncode == 1
    assert "lost the others" in output, output[-4000:]


@pytest.mark.slow
def test_two_jobs_of_a_sweep_run_in_one_process(calvin_folder, tmp_path):
    sweep = [*tiny_run(calvin_folder, tmp_path / "sweep", "schedule.total=2 step"), "optimizer.lr=1e-3,1e-4"]
    with command(["--multirun", *sweep], tmp_path) as process:
        assert process.statuses() == [0], process.output()
    jobs = sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert jobs == ["0_lr-0.001", "1_lr-0.0001"]
    assert all(len(checkpoints(tmp_path / "sweep" / job)) == 1 for job in jobs)
