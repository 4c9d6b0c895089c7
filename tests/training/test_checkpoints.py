"""Checkpoints that were damaged, hostile, abandoned or in the way: named, skipped or kept, never lost."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from calvin_folder import losses, make_calvin_folder, tiny_run, weights
from composing import completed, composed

from robovlms.commands.train import train
from robovlms.data.windows import WindowDataset
from robovlms.errors import UserError
from robovlms.files import LOCK, FolderLock
from robovlms.policy.checkpoint import checkpoints, load_config, load_policy, resolve_checkpoint
from robovlms.policy.manifest import check_checkpoint
from robovlms.policy.policy import VLAPolicy
from robovlms.training.checkpoints.run_folder import keep_newest
from robovlms.training.checkpoints.state import find_resume
from robovlms.training.optimizer.optimization import check_finite

ONE = ("schedule.warmup=0 step", "schedule.total=1 step")
FILES = (
    "config.yaml",
    "action_stats.json",
    "model.safetensors",
    "manifest.json",
    "spec.json",
    "backbone/config.json",
    "training_state/state.json",
    "training_state/optimizer.safetensors",
    "training_state/rng_0.safetensors",
)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place(len(content))] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "flipped_in_header": lambda path: flip(path, lambda size: min(size - 1, 12)),
    "flipped_in_body": lambda path: flip(path, lambda size: size * 2 // 3),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_calvin_folder(tmp_path_factory.mktemp("calvin"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run with checkpoints of steps 2 and 4."""
    return run(data, tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def again(finished, tmp_path):
    """A copy of it, to be ruined."""
    return shutil.copytree(finished, tmp_path / "run")


def run(data, folder, *extra):
    train(config_of(data, folder, *extra))
    return folder


def config_of(data, folder, *extra):
    return completed(composed(*tiny_run(data, folder, *extra)))


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        pytest.param(file, damage, marks=[] if (i + j) % len(DAMAGES) == 0 else pytest.mark.slow)
        for i, file in enumerate(FILES)  # each damaged in one way, which is the next one's for the next
        for j, damage in enumerate(DAMAGES)
    ],
)
def test_a_damaged_checkpoint_is_named_with_its_file_and_resume_goes_back_to_a_whole_one(
    data, finished, tmp_path, file, damage, caplog
):
    folder = shutil.copytree(finished, tmp_path / "run")
    newest = folder / "checkpoints" / "step_000004"
    DAMAGES[damage](newest / file)
    with pytest.raises(UserError, match="step_000004") as error:
        check_checkpoint(newest)
    assert file in str(error.value)
    if not file.startswith("training_state"):
        with pytest.raises(UserError, match=rf"step_000004.*{file}"):
            load_policy(newest)
    with pytest.raises(UserError, match=rf"step_000004.*{file}"):
        find_resume(config_of(data, folder, f"trainer.resume={newest}"))
    assert find_resume(config_of(data, folder, "trainer.resume=auto")).name == "step_000002"
    assert file in caplog.text
    assert "going back to" in caplog.text


@pytest.mark.slow
def test_a_run_goes_on_from_the_last_whole_checkpoint_and_ends_as_if_nothing_had_happened(data, finished, again):
    newest = again / "checkpoints" / "step_000004"
    DAMAGES["half"](newest / "model.safetensors")
    run(data, again, "trainer.resume=auto")
    check_checkpoint(newest)
    assert all((weights(again)[key] == value).all() for key, value in weights(finished).items())
    assert losses(again) == losses(finished)
    assert names(again) == ["abandoned_step_000004", "step_000002", "step_000004"]


def test_when_no_checkpoint_is_whole_the_run_says_so_and_starts_nothing_new(data, again):
    for path in checkpoints(again):
        DAMAGES["half"](path / "config.yaml")
    with pytest.raises(UserError, match=r"no whole checkpoint(.|\n)*step_000004(.|\n)*step_000002"):
        run(data, again, "trainer.resume=auto")
    assert names(again) == ["step_000002", "step_000004"]


@pytest.mark.slow
def test_a_half_line_of_metrics_costs_only_itself(data, again):
    with (again / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')
    run(data, again, "trainer.resume=auto", "schedule.total=6 step")
    assert [json.loads(line)["step"] for line in (again / "metrics.jsonl").read_text().splitlines()][-1] == 6
    assert len(losses(again)) == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: ${oc.env:HOME}\n", "interpolation"),
        ("name: run_${oc.env:USER,x}\n", "interpolation"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nname: [*b, *b]\n", "alias"),
        ("name: " + "[" * 5000 + "]" * 5000 + "\n", "nested deeper"),
        ("#" * 2_000_000, "bytes"),
        ("- 1\n", "cannot be read"),
        ("", "cannot be read"),
        ("name: \x00\n", "cannot be read"),
        ("name: [\n", "cannot be read"),
    ],
)
def test_a_hand_made_config_of_a_checkpoint_is_refused_without_being_followed(tmp_path, text, said):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"config\.yaml(.|\n)*{said}"):
        load_config(tmp_path / "config.yaml")


def test_the_config_that_a_run_writes_needs_none_of_what_is_refused(finished):
    text = (finished / "checkpoints" / "step_000004" / "config.yaml").read_text()
    assert "${" not in text
    assert load_config(finished / "config.yaml").name == yaml.safe_load(text)["name"]


def test_checkpoints_are_ordered_by_step_not_by_letters(tmp_path):
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        (tmp_path / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
    assert checkpoints(tmp_path)[-1].name == "step_1000001"
    keep_newest(tmp_path, 2, 1_000_001)
    assert names(tmp_path) == ["step_1000000", "step_1000001"]


@pytest.mark.parametrize("count", [-1, 0, 1])
def test_the_checkpoint_just_written_is_kept_whatever_is_asked_for(tmp_path, count):
    for step in (2, 4, 6):
        (tmp_path / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
    keep_newest(tmp_path, count, 4)
    assert names(tmp_path) == ["step_000004", "step_000006"]


@pytest.mark.slow
def test_after_a_rollback_the_abandoned_checkpoints_are_set_aside_and_never_resumed(data, again):
    old = again / "checkpoints" / "step_000002"
    for step in (2, 4):
        (again / "evaluation" / f"metaworld_step_{step:06d}").mkdir(parents=True)
    run(
        data,
        again,
        f"trainer.resume={old}",
        "schedule.total=3 step",
        "trainer.save_every=1 step",
        "trainer.keep_last=1",
    )
    assert names(again) == ["abandoned_step_000004", "step_000003"]
    evaluations = sorted(path.name for path in (again / "evaluation").iterdir())
    assert evaluations == ["abandoned_metaworld_step_000004", "metaworld_step_000002"]
    assert find_resume(config_of(data, again, "trainer.resume=auto")).name == "step_000003"


def test_a_checkpoint_of_another_run_is_not_resumed_into_one_that_exists(data, finished, again):
    with pytest.raises(UserError, match="another run"):
        run(data, again, f"trainer.resume={finished / 'checkpoints' / 'step_000002'}")


def test_leftovers_of_interrupted_saves_and_removals_are_swept_at_the_start(data, again):
    for name in (".step_000006.partial", ".step_000002.123.removed"):
        (again / "checkpoints" / name).mkdir()
    run(data, again, "trainer.resume=auto", "schedule.total=5 step")
    assert names(again) == ["step_000004", "step_000005"]


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


BROKEN = {
    "data": "data.root=/nowhere",
    "init_from": "trainer.init_from=/nowhere",
    "batch": "batch_size=4000",
    "learning_rate": "optimizer.lr=1e38",
    "cluster": "cluster=a100_4x8",
}


@pytest.mark.parametrize("cause", BROKEN)
def test_overwriting_changes_nothing_before_the_new_run_has_saved(data, again, cause):
    before = contents(again)
    with pytest.raises((ValueError, FileNotFoundError)):
        run(data, again, "trainer.overwrite=true", BROKEN[cause])
    after = contents(again)
    assert {name: after.get(name) for name in before} == before


def test_overwriting_replaces_a_run_and_leaves_what_is_not_its_own(data, again):
    (again / "thesis.tex").write_text("chapter one")
    (again / "checkpoints" / "notes.txt").write_text("step 4 is best")
    run(data, again, "trainer.overwrite=true", *ONE)
    assert names(again) == ["notes.txt", "step_000001"]
    assert (again / "thesis.tex").read_text() == "chapter one"
    assert len(losses(again)) == 1
    assert not [path for path in again.iterdir() if path.name in (".replaced", LOCK)]


def test_a_thesis_beside_a_config_file_is_never_deleted(data, tmp_path):
    (tmp_path / "config.yaml").write_text("title: my thesis\n")
    (tmp_path / "thesis.tex").write_text("chapter one")
    before = contents(tmp_path)
    for option in ("trainer.overwrite=true", "trainer.resume=auto", "trainer.resume=never"):
        with pytest.raises(UserError, match="not a run folder"):
            run(data, tmp_path, option)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("what", ["init_from", "data"])
def test_overwriting_is_refused_where_the_folder_holds_what_the_run_needs(data, again, what):
    shutil.copytree(data, again / "data")
    option = {"init_from": f"trainer.init_from={again}", "data": f"data.root={again / 'data'}"}[what]
    before = contents(again)
    with pytest.raises(UserError, match="would delete"):
        run(data, again, "trainer.overwrite=true", option)
    assert contents(again) == before


def test_overwriting_and_resuming_are_not_asked_for_together(data, again):
    with pytest.raises(UserError, match=r"trainer\.overwrite=true with trainer\.resume=auto"):
        run(data, again, "trainer.overwrite=true", "trainer.resume=auto")


def test_a_run_folder_behind_a_link_is_overwritten_where_it_lies(data, again, tmp_path):
    (tmp_path / "link").symlink_to(again)
    run(data, tmp_path / "link", "trainer.overwrite=true", *ONE)
    assert (tmp_path / "link").is_symlink()
    assert names(again) == ["step_000001"]


@pytest.mark.slow
def test_what_a_killed_overwrite_had_set_aside_comes_back(data, again):
    before = contents(again)
    script = (
        "import os, sys; from robovlms.training.checkpoints.run_folder import RunFolder\n"
        "from robovlms.policy.checkpoint import load_config\n"
        "from dataclasses import replace; from pathlib import Path\n"
        "config = load_config(Path(sys.argv[1]) / 'config.yaml')\n"
        "config = replace(config, output_dir=sys.argv[1], trainer=replace(config.trainer, overwrite=True))\n"
        "folder = RunFolder(config); folder.claim(); folder.start(0)\n"
        "(Path(sys.argv[1]) / 'config.yaml').write_text('new'); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(again)], timeout=120)
    assert done.returncode == 9
    assert not checkpoints(again)
    run(data, again, "trainer.resume=auto", "schedule.total=4 step")
    after = contents(again)
    assert {name: after[name] for name in before if "checkpoints" in name} == {
        name: content for name, content in before.items() if "checkpoints" in name
    }


@pytest.fixture
def poisoned(monkeypatch):
    """Samples whose actions became NaN after all checks; and the policies that are trained on them."""
    read, build, policies = WindowDataset.__getitem__, VLAPolicy.from_config, []

    def poison(self, index):
        sample = read(self, index)
        sample.actions[0, 0] = math.nan
        return sample

    def keep(*arguments):
        policies.append(build(*arguments))
        return policies[-1]

    monkeypatch.setattr(WindowDataset, "__getitem__", poison)
    monkeypatch.setattr(VLAPolicy, "from_config", keep)
    yield policies
    monkeypatch.undo()


def test_a_loss_that_is_not_finite_changes_no_weight_and_is_never_saved(data, tmp_path, poisoned):
    with pytest.raises(UserError, match=r"not finite at step 0"):
        run(data, tmp_path / "run", "trainer.log_every=100 step", "trainer.save_every=4 step")
    assert all(parameter.isfinite().all() for parameter in poisoned[0].parameters())
    assert not checkpoints(tmp_path / "run")


def test_weights_that_are_lost_are_not_saved_though_the_last_loss_was_finite():
    weights = dict(torch.nn.Linear(2, 2).named_parameters())
    check_finite(weights, 3)
    weights["weight"].data[0, 0] = 1e38  # finite, but its square is not
    with pytest.raises(UserError, match=r"1 of 2 tensors are no longer finite at step 3, e\.g\. weight"):
        check_finite(weights, 3)


def test_a_new_run_that_fails_before_it_has_saved_leaves_the_old_one(data, again, poisoned):
    before = contents(again)
    with pytest.raises(UserError, match="not finite"):
        run(data, again, "trainer.overwrite=true")
    after = contents(again)
    assert {name: after.get(name) for name in before} == before


@pytest.mark.slow
def test_a_failed_start_does_not_stand_in_the_way_of_the_corrected_command(data, tmp_path, poisoned, monkeypatch):
    folder = tmp_path / "run"
    with pytest.raises(UserError, match="not finite"):
        run(data, folder)
    monkeypatch.undo()
    run(data, folder, *ONE)
    assert len(losses(folder)) == 1
    with pytest.raises(FileNotFoundError):
        run(data, tmp_path / "typo", "data.root=/nowhere")
    assert not (tmp_path / "typo").exists()


@pytest.mark.slow
def test_a_validation_that_fails_costs_no_step(data, finished, tmp_path, monkeypatch):
    def fail(*_):
        torch.rand(1)
        raise RuntimeError("a picture could not be drawn")

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("robovlms.training.trainer.validate", fail)
        with pytest.raises(RuntimeError, match="a picture could not be drawn"):
            run(data, folder, "trainer.validate_every=3 step", "trainer.save_every=100 step")
    assert names(folder) == ["step_000003"]
    run(data, folder, "trainer.resume=auto")
    assert all((weights(folder)[key] == value).all() for key, value in weights(finished).items())


CHANGES = ["weight_decay=0.5", "betas=[0.5,0.9]", "eps=1e-2", "lr=0.01", "max_grad_norm=0.001"]


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_an_optimizer_option_that_a_resume_may_change_has_an_effect(data, finished, again, change):
    (run_same, run_changed) = (again, shutil.copytree(again, again.with_name("changed")))
    run(data, run_same, "trainer.resume=auto", "schedule.total=6 step")
    run(data, run_changed, "trainer.resume=auto", "schedule.total=6 step", f"optimizer.{change}")
    same, changed = weights(run_same), weights(run_changed)
    assert any(not torch.equal(same[key], changed[key]) for key in same)


@pytest.mark.slow
def test_a_resume_notices_that_the_data_are_others(data, again, tmp_path):
    shorter = make_calvin_folder(tmp_path / "shorter")
    notes = shorter / "training" / "lang_annotations" / "auto_lang_ann.npy"
    content = np.load(notes, allow_pickle=True).item()
    content["info"]["indx"] = [(0, 24), (30, 54), (60, 84), (90, 110)]
    np.save(notes, content)
    with pytest.raises(UserError, match=r"calvin: 84 windows at step 4, now 80"):
        run(shorter, again, "trainer.resume=auto")
    content["info"]["indx"] = [(0, 24), (30, 54), (60, 84), (90, 114)]
    content["language"]["ann"][0] = "push the button"
    np.save(notes, content)
    with pytest.raises(UserError, match="as many windows as at step 4, but other actions or instructions"):
        run(shorter, again, "trainer.resume=auto")
    run(shutil.copytree(data, tmp_path / "moved"), again, "trainer.resume=auto", "schedule.total=5 step")


def hold(folder):
    """Write the folder from another process, until its input ends."""
    script = (
        "import sys; from pathlib import Path; from robovlms.files import FolderLock\n"
        "FolderLock(Path(sys.argv[1]), 'output_dir=x').acquire(); print('held', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], **pipes)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.slow
def test_a_second_run_is_refused_with_the_process_that_writes_the_folder(data, again):
    process = hold(again)
    try:
        for option in ("trainer.resume=auto", "trainer.overwrite=true"):
            with pytest.raises(UserError, match=rf"host {socket.gethostname()}, pid {process.pid}, since \d"):
                run(data, again, option)
    finally:
        process.kill()
        process.wait()
    run(data, again, "trainer.resume=auto", "schedule.total=5 step")  # the lock of a killed process is nobody's
    assert not (again / LOCK).exists()


def test_a_lock_of_another_machine_counts_as_long_as_it_is_refreshed(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": "2026-01-01 00:00:00"}))
    with pytest.raises(UserError, match=r"host elsewhere, pid 7, since 2026-01-01 00:00:00"):
        FolderLock(tmp_path, "output_dir=x").acquire()
    old = time.time() - 3600
    os.utime(tmp_path / LOCK, (old, old))
    lock = FolderLock(tmp_path, "output_dir=x")
    lock.acquire()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_the_newest_checkpoint_of_a_run_is_found_even_when_it_has_lost_its_weights(again):
    (again / "checkpoints" / "step_000004" / "model.safetensors").unlink()
    assert resolve_checkpoint(again).name == "step_000004"
    assert resolve_checkpoint(Path(again / "checkpoints" / "step_000004")).name == "step_000004"
