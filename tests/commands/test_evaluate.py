"""Checkpoints of a run that are evaluated one by one, all together, or as they appear while the run goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from composing import completed, composed
from miniatures import make_miniature

from robovlms.commands.evaluate import evaluate
from robovlms.commands.train import train
from robovlms.config.choices import CheckpointChoice
from robovlms.config.commands import EvaluateConfig
from robovlms.errors import UserError
from robovlms.files import FolderLock, read_json_lines
from robovlms.policy.checkpoint import checkpoints, choose_checkpoints
from robovlms.training.checkpoints.run_folder import keep_newest
from robovlms.training.follow import DeletedError, follow, held

pytest.importorskip("metaworld", reason='pip install -e ".[metaworld]"')
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SIM = ["sim.tasks=[drawer-open,drawer-close]", "sim.episodes=1", "sim.image_size=32", "sim.max_steps=3"]
STARTED = []


@pytest.fixture(autouse=True)
def _leave_nobody_behind():
    """End what a failed test has left running."""
    yield
    for process in STARTED:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    STARTED.clear()


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """A few demonstrations with Meta-World's action contract."""
    data = completed(composed("experiment=quickstart")).data
    return make_miniature(data, tmp_path_factory.mktemp("demos") / "data").root


def tiny_run(demos, folder, *extra):
    """Return the overrides of a run of 6 steps with a checkpoint at every second."""
    return [
        "experiment=quickstart",
        "backbone.size=tiny",
        "collect.enabled=false",
        "evaluation.enabled=false",
        "evaluation.language=[]",
        "evaluation.execute_steps=1",
        "evaluation.num_workers=1",
        "evaluation.videos_per_task=0",
        "head.hidden_dim=16",
        f"data.root={demos}",
        f"output_dir={folder}",
        "batch_size=4",
        "device_batch_size=4",
        "schedule.warmup=1 step",
        "schedule.total=6 step",
        "trainer.log_every=1 step",
        "trainer.validate_every=null",
        "trainer.save_every=2 step",
        "trainer.keep_last=10",
        *SIM,
        *extra,
    ]


@pytest.fixture(scope="module")
def run(demos, tmp_path_factory):
    """A run with checkpoints at steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(completed(composed(*tiny_run(demos, folder))))
    return folder


def asked(folder, *options):
    given = [f"checkpoint={folder}", "evaluation.videos_per_task=0", *options]
    return completed(composed(*given, config_name="evaluate"), schema=EvaluateConfig)


def start(script, *arguments, launcher=()):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, *launcher, str(ROOT / script), *arguments]
    STARTED.append(subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, **pipes))
    return STARTED[-1]


def finish(process, status=0):
    output, _ = process.communicate(timeout=150)
    assert process.returncode == status, output
    return output


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def evaluated(folder):
    """Return the names of the evaluations in a run that have results."""
    return sorted(path.parent.name for path in folder.glob("evaluation/*/results.json"))


def test_all_checkpoints_of_a_run_give_a_table_and_each_has_its_own_results(run):
    page = evaluate(asked(run, "checkpoints=all"))
    assert evaluated(run) == ["metaworld_step_000002", "metaworld_step_000004", "metaworld_step_000006"]
    assert page == run / "evaluation" / "metaworld_checkpoints" / "checkpoints.html"
    table = json.loads((page.parent / "checkpoints.json").read_text())
    assert [row["step"] for row in table["checkpoints"]] == [2, 4, 6]
    assert all(row["overall"]["trials"] == 2 for row in table["checkpoints"])
    assert table["best"] == {"step": 2, "of": 3, "score": 0.0}
    flags = [json.loads((Path(row["folder"]) / "results.json").read_text()) for row in table["checkpoints"]]
    assert [results.get("chosen_from") for results in flags] == [3, None, None]
    lines = (page.parent / "checkpoints.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["2", "4", "6"]
    assert [line.split("|")[6].strip() for line in lines[2:5]] == ["best of 3", "", ""]
    assert "best of 3 checkpoints is that of step 2. It was chosen by these very episodes" in lines[-1]
    assert page.read_text().count("data:image/png;base64,") == 1


def test_a_run_is_evaluated_as_it_was_trained_to_be(demos, tmp_path):
    folder = tmp_path / "run"
    train(completed(composed(*tiny_run(demos, folder, "evaluation.checkpoints=every:4"))))
    evaluate(asked(folder))
    assert evaluated(folder) == ["metaworld_step_000004"]
    evaluate(asked(folder, "checkpoints=last"))
    assert evaluated(folder) == ["metaworld_step_000004", "metaworld_step_000006"]
    evaluate(asked(folder / "checkpoints" / "step_000002"))
    assert evaluated(folder)[0] == "metaworld_step_000002"


def test_several_checkpoints_lie_side_by_side_in_a_folder_of_the_users_choice(run, tmp_path):
    page = evaluate(asked(run, "checkpoints=every:3", f"output_dir={tmp_path / 'out'}"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["step_000006"]
    assert page == tmp_path / "out" / "checkpoints.html"


@pytest.mark.parametrize(
    ("where", "options", "message"),
    [
        ("", ["checkpoints=every:5"], r"no checkpoint at a multiple of 5 steps, but those of 2, 4, 6"),
        ("checkpoints/step_000002", ["checkpoints=all"], r"is one of them: give the run"),
        ("checkpoints/step_000002", ["watch=true"], r"watch=true follows a run"),
        ("", ["watch=true", "checkpoints=last"], r"give checkpoints=all or e\.g\. every:10000, or leave watch out"),
        ("nowhere", ["watch=true"], r"does not exist: watch=true follows a run that has begun|neither a checkpoint"),
    ],
)
def test_what_cannot_be_meant_is_refused(run, tmp_path, where, options, message):
    with pytest.raises((UserError, FileNotFoundError), match=message):
        evaluate(asked(run / where, *options, f"output_dir={tmp_path}"))


@pytest.mark.parametrize("choice", ["every", "every:0", "every:-2", "every:x", "newest", "every:1.5", ""])
def test_a_choice_that_cannot_be_read_says_what_can(choice):
    with pytest.raises(UserError, match=r"write last, all, or e\.g\. every:10000"):
        asked("somewhere", f"checkpoints='{choice}'")
    with pytest.raises(UserError, match=r"evaluation\.checkpoints=.*write last, all, or e\.g\. every:10000"):
        asked("somewhere", f"evaluation.checkpoints='{choice}'")


def test_checkpoints_that_the_run_would_not_write_are_refused_before_it_trains(demos, tmp_path):
    with pytest.raises(UserError, match=r"every:3 asks for checkpoints that trainer\.save_every=2 step does not write"):
        completed(composed(*tiny_run(demos, tmp_path, "evaluation.checkpoints=every:3")))


def test_a_checkpoint_that_the_run_deletes_stays_while_it_is_held_and_one_that_is_gone_says_so(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    first, second, _ = checkpoints(copy)
    with held(first, copy) as folder:
        keep_newest(copy, 1, 6)
        assert not first.exists()
        assert names_in(folder) == names_in(run / "checkpoints" / first.name)
    assert not (copy / "evaluation" / "held").exists()
    with pytest.raises(DeletedError, match=r"step_000004 was deleted by trainer\.keep_last"), held(second, copy):
        pass


def test_a_checkpoint_that_was_held_when_its_evaluation_was_killed_is_evaluated_after_all(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    interrupted = follow(copy, CheckpointChoice.parse("all"))
    assert next(interrupted).name == "step_000002"
    interrupted.close()
    keep_newest(copy, 1, 6)
    assert [folder.name for folder in follow(copy, CheckpointChoice.parse("all"))] == ["step_000002", "step_000006"]


def test_a_lock_is_held_while_its_process_lives(tmp_path):
    lock = FolderLock(tmp_path, "output_dir")
    assert not lock.is_held()
    code = f"""
from pathlib import Path; from robovlms.files import FolderLock; import time
FolderLock(Path({str(tmp_path)!r}), 'x').acquire(); print('ready', flush=True); time.sleep(60)"""
    process = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    assert lock.is_held()
    process.kill()
    process.communicate()
    assert not lock.is_held()


LONG = ["schedule.total=60 step", "trainer.save_every=20 step", "trainer.keep_last=1", "trainer.log_every=20 step"]


@pytest.mark.extended
def test_a_run_that_trains_is_followed_to_its_end_and_its_trackers_get_the_scores(demos, tmp_path):
    folder = tmp_path / "run"
    training = start("train.py", *tiny_run(demos, folder, *LONG, "tracking=tensorboard"))
    while not (folder / "config.yaml").is_file():
        assert training.poll() is None, training.communicate()[0]
        time.sleep(0.1)
    watching = start("scripts/evaluate.py", f"checkpoint={folder}", "watch=true", "evaluation.videos_per_task=0")
    finish(training)
    finish(watching)
    rows = read_json_lines(folder / "evaluation" / "metrics.jsonl")
    assert rows[-1]["step"] == 60
    assert rows[-1].keys() == {"step", "eval/success", "eval/drawer-open", "eval/drawer-close"}
    assert [row["step"] for row in read_json_lines(folder / "metrics.jsonl") if "train/loss" in row] == [20, 40, 60]
    assert list((folder / "tensorboard" / "evaluation").glob("events*"))
    assert not (folder / "evaluation" / "held").exists()


def test_an_evaluation_beside_the_training_ends_with_it_and_has_scored_its_last_checkpoint(demos, tmp_path):
    folder = tmp_path / "run"
    extra = [*LONG, "evaluation.during_training=true", "evaluation.enabled=true", "evaluation.engine.device=cpu"]
    output = finish(start("train.py", *tiny_run(demos, folder, *extra)))
    assert "training has ended; its last checkpoints are being evaluated" in output
    assert "metaworld_step_000060" in evaluated(folder)
    assert read_json_lines(folder / "evaluation" / "metrics.jsonl")[-1]["step"] == 60
    journal = folder / "evaluation" / "metaworld_step_000060" / "episodes.jsonl"
    assert len(journal.read_text().splitlines()) == 1 + 2  # evaluation.enabled plays nothing again


def test_a_finished_run_that_is_resumed_goes_on_with_its_evaluation_alone(demos, run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("evaluation"))
    weights = {path: path.read_bytes() for path in copy.glob("checkpoints/*/model.safetensors")}
    finish(start("train.py", *tiny_run(demos, copy, "trainer.resume=auto", "evaluation.during_training=true")))
    assert evaluated(copy) == ["metaworld_step_000002", "metaworld_step_000004", "metaworld_step_000006"]
    assert weights == {path: path.read_bytes() for path in copy.glob("checkpoints/*/model.safetensors")}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_leaves_no_evaluation_behind(demos, tmp_path, number):
    folder = tmp_path / "run"
    endless = ["schedule.total=100000 step", "trainer.save_every=20 step", "evaluation.during_training=true"]
    process = start("train.py", *tiny_run(demos, folder, *endless))
    deadline = time.monotonic() + 120
    while not checkpoints(folder):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.send_signal(number)
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


@pytest.mark.extended
def test_two_processes_of_a_launch_evaluate_every_checkpoint_of_a_run_together(run, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["checkpoints=every:2", "sim=metaworld", *SIM, "sim.episodes=2", "evaluation.videos_per_task=0"]
    where = [f"checkpoint={run}", f"output_dir={tmp_path / 'two'}"]
    output = finish(start("scripts/evaluate.py", *where, *options, launcher=torchrun))
    assert output.count("3 checkpoints: ") == 1
    evaluate(asked(run, *options, f"output_dir={tmp_path / 'one'}"))
    for name in ("step_000002", "step_000004", "step_000006"):
        one, two = (json.loads((tmp_path / way / name / "results.json").read_text()) for way in ("one", "two"))
        assert one["language"] == two["language"]
        journals = list((tmp_path / "two" / name).glob("episodes.rank*.jsonl"))
        assert sum(len(path.read_text().splitlines()) - 1 for path in journals) == 4


def test_a_choice_picks_the_checkpoints_of_a_run(run):
    for text, steps in {"last": "6", "all": "246", "every:4": "4"}.items():
        assert "".join(path.name[-1] for path in choose_checkpoints(run, CheckpointChoice.parse(text))) == steps
