"""Checkpoints that are written beside training: what goes wrong is said, and nothing half-written is left."""

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from calvin_folder import losses, tiny_run
from composing import completed, composed
from launching import launch, started

from robovlms.commands.train import train
from robovlms.errors import UserError
from robovlms.policy.checkpoint import checkpoints
from robovlms.policy.manifest import check_checkpoint
from robovlms.training.checkpoints.pieces import Piece, Pieces, save_pieces
from robovlms.training.checkpoints.saving import CheckpointWriter
from robovlms.training.checkpoints.state import find_resume

LONG = ["schedule.total=100000 step", "trainer.save_every=1 step", "trainer.validate_every=null"]
PATIENT = "parallel.timeout_s=40"  # gloo may overlook that another process has died until that time is over


def saving(calvin_folder, run, *extra):
    train(completed(composed(*tiny_run(calvin_folder, run, "trainer.validate_every=null", *extra))))


FEW = ["trainer.save_every=3 step", "schedule.total=5 step", "ema=default", "ema.decay=0.5"]


@pytest.fixture(scope="module")
def in_line(calvin_folder, tmp_path_factory):
    """A run whose checkpoints of steps 3 and 5 were written while it waited."""
    run = tmp_path_factory.mktemp("in_line") / "run"
    saving(calvin_folder, run, *FEW, "trainer.async_save=false")
    return run


@pytest.mark.slow
def test_what_training_changes_while_a_checkpoint_is_written_is_not_in_it(
    calvin_folder, tmp_path, in_line, monkeypatch
):
    write, released = CheckpointWriter._write_part, []

    def wait(self, *arguments):
        if not released:  # the first save: only when the run is two steps further
            deadline = time.monotonic() + 30
            while len(losses(tmp_path / "slow")) < 4 and time.monotonic() < deadline:
                time.sleep(0.01)
            released.append(losses(tmp_path / "slow"))
        write(self, *arguments)

    monkeypatch.setattr(CheckpointWriter, "_write_part", wait)
    saving(calvin_folder, tmp_path / "slow", *FEW)
    assert len(released[0]) >= 4
    assert_same_checkpoints(in_line, tmp_path / "slow")


@pytest.mark.slow
def test_weights_change_only_when_what_is_saved_of_them_is_copied(calvin_folder, tmp_path, in_line, monkeypatch):
    copy = CheckpointWriter._copy

    def wait(self, tensors):
        time.sleep(0.3)
        copy(self, tensors)

    monkeypatch.setattr(CheckpointWriter, "_copy", wait)
    saving(calvin_folder, tmp_path / "slow", *FEW, "trainer.validate_every=3 step")  # which swaps in the average
    assert_same_checkpoints(in_line, tmp_path / "slow")


def assert_same_checkpoints(ours, theirs):
    for step in (3, 5):
        left, right = (check_tensors(path / "checkpoints" / f"step_{step:06d}") for path in (ours, theirs))
        assert left == right


def check_tensors(checkpoint):
    check_checkpoint(checkpoint)
    names = ("model.safetensors", "ema.safetensors", "training_state/optimizer.safetensors")
    return [(checkpoint / name).read_bytes() for name in names]


@pytest.mark.slow
def test_an_error_in_the_background_ends_the_run_at_the_next_save_and_leaves_earlier_checkpoints(
    calvin_folder, tmp_path, monkeypatch
):
    write = CheckpointWriter._write_part

    def fail(self, folder, snapshot):
        if snapshot.state.step == 2:
            raise OSError(28, "No space left on device")
        write(self, folder, snapshot)

    monkeypatch.setattr(CheckpointWriter, "_write_part", fail)
    with pytest.raises(OSError, match=r"could not write .*step_000002.*Earlier checkpoints are untouched"):
        saving(calvin_folder, tmp_path / "run", "trainer.save_every=1 step", "schedule.total=6 step")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000001"]
    check_checkpoint(checkpoints(tmp_path / "run")[0])
    assert len(losses(tmp_path / "run")) == 3


def test_an_error_in_the_last_save_ends_the_run_too(calvin_folder, tmp_path, monkeypatch):
    def fail(self, folder, snapshot):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CheckpointWriter, "_write_part", fail)
    with pytest.raises(OSError, match="could not write"):
        saving(calvin_folder, tmp_path / "run", "trainer.save_every=9 step", "schedule.total=2 step")
    assert not checkpoints(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "victims"), [pytest.param("zero1", [0, 1], marks=pytest.mark.slow), ("fsdp2", [1])]
)
def test_a_launch_that_is_killed_at_any_moment_leaves_whole_checkpoints_and_goes_on(
    calvin_folder, tmp_path, parallel, victims
):
    run = tmp_path / "run"
    with started(2, [tiny_run(calvin_folder, run, *LONG, PATIENT, f"parallel={parallel}")], tmp_path) as processes:
        processes.wait_for(lambda: len(checkpoints(run)) > 0)
        time.sleep(random.random() / 2)
        for rank in victims:
            os.kill(processes.pids[rank], signal.SIGKILL)
        assert all(processes.statuses(60))
    check_goes_on(calvin_folder, run)


def check_goes_on(data, run):
    """Check that all checkpoints of a run are whole, and that one process trains on from the newest."""
    for checkpoint in checkpoints(run):
        check_checkpoint(checkpoint)
    step = int(checkpoints(run)[-1].name.removeprefix("step_"))
    saving(data, run, "trainer.resume=auto", f"schedule.total={step + 1} step")
    assert checkpoints(run)[-1].name == f"step_{step + 1:06d}"
    assert not list((run / "checkpoints").glob(".step_*"))


@pytest.mark.extended
def test_many_launches_in_a_row_that_are_killed_at_random_moments_leave_whole_checkpoints(calvin_folder, tmp_path):
    run = tmp_path / "run"
    for number in range(12):
        way = ("zero1", "fsdp2", "ddp")[number % 3]
        extra = [*LONG, PATIENT, f"parallel={way}", "trainer.resume=auto", "trainer.keep_last=3"]
        before = {path.name for path in checkpoints(run)}
        with started(2, [tiny_run(calvin_folder, run, *extra)], tmp_path) as processes:
            processes.wait_for(lambda known=before: bool({path.name for path in checkpoints(run)} - known))
            time.sleep(random.random())
            os.kill(processes.pids[number % 2], signal.SIGKILL)
            assert all(processes.statuses(60))
        for checkpoint in checkpoints(run):
            check_checkpoint(checkpoint)
    check_goes_on(calvin_folder, run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "full"), [("zero1", 1), *(pytest.param(mode, 0, marks=pytest.mark.slow) for mode in ("fsdp2", "ddp"))]
)
def test_a_process_whose_disk_is_full_ends_all_and_leaves_earlier_checkpoints(calvin_folder, tmp_path, parallel, full):
    run = tmp_path / "run"
    extra = [*LONG, PATIENT, f"parallel={parallel}", "trainer.keep_last=1000"]
    with started(2, [tiny_run(calvin_folder, run, *extra)], tmp_path) as processes:
        processes.wait_for(lambda: len(checkpoints(run)) > 0)
        few = 1 << 20  # bytes, of every file that it writes from now on
        psutil.Process(processes.pids[full]).rlimit(psutil.RLIMIT_FSIZE, (few, few))
        assert all(processes.statuses(60))
    assert processes.output().count("Earlier checkpoints are untouched") == 1, processes.output()
    assert re.search(r"could not write \S+step_\d+.*File too large", processes.output()), processes.output()
    check_goes_on(calvin_folder, run)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def spread(calvin_folder, tmp_path_factory):
    """A run of two processes that each wrote their part of two checkpoints."""
    folder = tmp_path_factory.mktemp("spread")
    extra = ["parallel=zero1", "trainer.validate_every=null", "schedule.total=2 step", "trainer.save_every=1 step"]
    launch(2, [tiny_run(calvin_folder, folder / "run", *extra)], folder)
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_shard_sends_a_run_back_to_the_newest_whole_checkpoint(
    calvin_folder, tmp_path, spread, damage, caplog
):
    shutil.copytree(spread, tmp_path / "run")
    config = completed(composed(*tiny_run(calvin_folder, tmp_path / "run", "trainer.resume=auto")))
    assert find_resume(config).name == "step_000002"
    shards = [path / "training_state" / "optimizer_00001.safetensors" for path in checkpoints(tmp_path / "run")]
    damage(shards[1])
    assert find_resume(config).name == "step_000001"
    assert "optimizer_00001.safetensors" in caplog.text
    damage(shards[0])
    with pytest.raises(UserError, match=r"no whole checkpoint:(.|\n)*optimizer_00001"):
        find_resume(config)


@pytest.mark.slow
def test_a_killed_rank_ends_all_others_with_a_line_that_says_so(calvin_folder, tmp_path):
    run = tmp_path / "run"
    extra = [*LONG[:1], PATIENT, "trainer.save_every=100000 step"]
    with started(2, [tiny_run(calvin_folder, run, *extra)], tmp_path) as processes:
        processes.wait_for_losses(run)
        os.kill(processes.pids[1], signal.SIGKILL)
        assert processes.statuses(60) == [2, -signal.SIGKILL]
    assert "lost the others" in processes.output()
    assert "trainer.resume=auto" in processes.output()
    assert "failed with" in (run / "logs" / "rank_00000.log").read_text()
    assert "process 1 on" in (run / "logs" / "rank_00001.log").read_text()


def test_pieces_are_read_across_the_borders_of_files(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    cuts = [(0, 7), (7, 8), (8, 24)]
    for number, (start, stop) in enumerate(cuts):
        piece = Piece(whole.flatten()[start:stop], start, (4, 6))
        save_pieces(tmp_path / f"{number}.safetensors", {"w": piece, "count": Piece.whole(torch.tensor(3.0))})
    pieces = Pieces(sorted(tmp_path.glob("*.safetensors")))
    assert torch.equal(pieces.read("w"), whole)
    for start in range(24):
        for stop in range(start, 25):
            assert torch.equal(pieces.read("w", start, stop), whole.flatten()[start:stop])
    assert pieces.read("count") == 3
    (tmp_path / "1.safetensors").unlink()
    with pytest.raises(ValueError, match="values 7 to 24 of w are in no file"):
        Pieces(sorted(tmp_path.glob("*.safetensors"))).read("w")
