"""A sweep tells what failed, whichever launcher runs it, and its folders can be given back to every command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from composing import completed, composed

from robovlms.cli.arguments import rewrite
from robovlms.cli.jobs import MAX_NAME, Outcome, job_name, summary
from robovlms.errors import UserError

ROOT = Path(__file__).parents[2]
LAUNCHERS = {
    "basic": ["--multirun"],
    "short": ["-m"],
    "joblib": ["--multirun", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_with_a_failed_job_ends_with_its_status_and_a_summary(launcher: str, tmp_path: Path) -> None:
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install hydra-joblib-launcher")
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "data.root=/x",
        "output_dir=out",
        "optimizer.lr=-1,-2",
        "seed=-1",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [*command, *LAUNCHERS[launcher]], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.splitlines()[-3:] == [
        "2 of 2 jobs failed:",
        "  out/0_lr--1: seed=-1 must be at least 0.",
        "  out/1_lr--2: seed=-1 must be at least 0.",
    ]


def test_a_sweep_without_a_failed_job_has_no_summary() -> None:
    assert summary([Outcome("out/0", 0), Outcome("out/1", 0)]) == ""
    assert (
        summary([Outcome("out/0", 0), Outcome("out/1", 1, "KeyError: a\nb")])
        == "1 of 2 jobs failed:\n  out/1: KeyError: a\n"
    )


@pytest.mark.parametrize(
    ("overrides", "swept", "name"),
    [
        (["optimizer.lr=0.0001", "data.root=/x"], {"optimizer.lr"}, "3_lr-0.0001"),
        (["optimizer.lr=1e-4", "seed=1"], {"optimizer.lr", "seed"}, "3_lr-1e-4_seed-1"),
        (["backbone=nano", "view.views=[side,wrist]"], {"backbone", "view.views"}, "3_backbone-nano_views-side-wrist"),
        (["optimizer.lr=1e-4", "output_dir=x", "trainer.resume=auto"], set(), "3_lr-1e-4"),
        ([], set(), "3"),
    ],
)
def test_a_job_is_called_what_varies_in_letters_that_every_command_takes(
    overrides: list[str], swept: set[str], name: str
) -> None:
    assert job_name(3, overrides, swept) == name
    assert not set("=,") & set(name)


def test_sweeps_of_one_value_and_long_names_do_not_collide() -> None:
    assert job_name(0, ["optimizer.lr=1e-4"], set()) != job_name(0, ["optimizer.lr=1e-3"], set())
    long = [[f"name={'x' * 200}", f"seed={seed}"] for seed in (1, 2)]
    names = {job_name(0, overrides, {"name", "seed"}) for overrides in long}
    assert len(names) == 2
    assert all(len(name) <= MAX_NAME for name in names)


@pytest.mark.parametrize(
    ("given", "config_name", "expected"),
    [
        ("checkpoint=runs/0_lr=0.0001", "evaluate", "checkpoint='runs/0_lr=0.0001'"),
        ("checkpoint=runs/0_lr=1,seed=2", "merge_lora", "checkpoint='runs/0_lr=1,seed=2'"),
        ("trainer.init_from=runs/a,b", "train", "trainer.init_from='runs/a,b'"),
        ("trainer.resume=runs/(a) [b]", "train", "trainer.resume='runs/(a) [b]'"),
        ("data.root=/data/it's=1", "train", "data.root='/data/it\\'s=1'"),
        ("folders=runs/a", "compare", "folders=[runs/a]"),
        ("folders=[runs/a=1,runs/b]", "compare", "folders=['runs/a=1',runs/b]"),
        ("data.views={front: x}", "train", "++data.views={front: x}"),
        ("+data@data.parts.mine=lerobot", "train", "+data@data.sources.mine=lerobot"),
        ("evaluation.part=mine", "evaluate", "evaluation.source=mine"),
        ("~data.parts.kuka", "train", "~data.sources.kuka"),
        ("backbone.prompt=a=1, {instruction}", "train", "backbone.prompt='a=1, {instruction}'"),
        ("backbone.prompt='a=b {instruction}'", "train", "backbone.prompt='a=b {instruction}'"),
        ("optimizer.lr=choice(1e-4,1e-5)", "train", "optimizer.lr=choice(1e-4,1e-5)"),
        ("output_dir=runs/${name}", "train", "output_dir=runs/${name}"),
        ("data.episodes=0-99", "train", "data.episodes=0-99"),
        ("data.episodes=0-99,200-", "train", "data.episodes='0-99,200-'"),
        ("data.episodes=-3,-7-9", "train", "data.episodes='-3,-7-9'"),
        ("data.episodes=[0,3]", "train", "data.episodes='[0,3]'"),
        ("+data.sources.mine.episodes=-bad.json,4", "train", "+data.sources.mine.episodes='-bad.json,4'"),
        ("data.episodes=null", "train", "data.episodes=null"),
        ("sim.episodes=5", "train", "sim.episodes=5"),
        ("drop=3,7-9", "edit_data", "drop='3,7-9'"),
        ("trim=4:12-87,6:0-", "edit_data", "trim='4:12-87,6:0-'"),
        ("split={train: 0.9, test: 0.1}", "edit_data", "++split={train: 0.9, test: 0.1}"),
    ],
)
def test_a_command_line_means_what_it_says(given: str, config_name: str, expected: str) -> None:
    assert rewrite([given], config_name) == [expected]


def test_folders_of_old_sweeps_are_found_though_their_names_have_commas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0_lr=1,seed=2").mkdir()
    assert rewrite(["folders=[0_lr=1,seed=2,other]"], "compare") == ["folders=['0_lr=1,seed=2',other]"]
    assert rewrite(["folders=0_lr=1,seed=2"], "compare") == ["folders=['0_lr=1,seed=2']"]
    swept = rewrite(["--multirun", "checkpoint=0_lr=1,seed=2,other"], "evaluate")
    assert swept == ["--multirun", "checkpoint='0_lr=1,seed=2',other"]


def test_a_sweep_over_episodes_keeps_what_is_in_brackets_together() -> None:
    swept = rewrite(["--multirun", "data.episodes=0-9,[0-4,-3],-2"], "train")
    assert swept == ["--multirun", "data.episodes=0-9,'[0-4,-3]',-2"]


@pytest.mark.parametrize("text", ["5", "0-99", "0-99,200-", "-3,-7-9", "-3", "[0,3]", "lists/keep.json,-bad.json"])
def test_episodes_reach_the_config_as_they_are_written(text: str) -> None:
    config = completed(composed("data=lerobot", *rewrite([f"data.episodes={text}"], "train")))
    assert config.data.episodes == text


def test_flags_may_stand_anywhere() -> None:
    assert rewrite(["seed=1,2", "--multirun"], "train") == ["--multirun", "seed=1,2"]
    assert rewrite(["seed=1", "--cfg", "job", "name=x"], "train") == ["--cfg", "job", "seed=1", "name=x"]


def test_the_simulator_of_a_run_is_what_options_of_it_change(tmp_path: Path) -> None:
    saved = "sim:\n  name: metaworld\n  tasks: [drawer-open, 'a, b']\n  control_hz: 20.0\n  max_steps: 50\n"
    (tmp_path / "config.yaml").write_text(saved, encoding="utf-8")
    given = [f"checkpoint={tmp_path}", "sim.max_steps=3"]
    assert rewrite(given, "evaluate") == [
        "sim=metaworld", "sim.tasks=['drawer-open','a, b']", "sim.control_hz=20.0", "sim.max_steps=50", *given,
    ]  # fmt: skip
    assert rewrite([*given, "sim=metaworld"], "evaluate") == [*given, "sim=metaworld"]


def test_a_run_decides_how_its_policy_acts_and_the_command_line_has_the_last_word(tmp_path):
    saved = {"execute_steps": 4, "execution": "chunk", "language": ["opposite"], "num_workers": 8, "enabled": False}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"evaluation": saved}))
    given = [f"checkpoint={tmp_path}", "evaluation.execute_steps=1"]
    assert rewrite(given, "evaluate") == [
        "evaluation.execution='chunk'",
        "evaluation.execute_steps=4",
        "evaluation.language=['opposite']",
        *given,
    ]


def test_an_old_run_is_evaluated_as_its_config_would_be_written_today(tmp_path):
    old = {"evaluation": {"opposite_episodes_per_task": 5, "episodes_per_task": 3}, "sim": {"name": "metaworld"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    given = [f"checkpoint={tmp_path}", "sim.seed=7"]
    assert rewrite(given, "evaluate") == [
        "sim=metaworld",
        "sim.episodes=3",
        "evaluation.language=['opposite']",
        "evaluation.language_episodes=5",
        *given,
    ]


@pytest.mark.parametrize(
    "text", ["evaluation: text", "[]", "evaluation: null\nsim: 3\ndata: null", "trainer: x\ndata: [1]"]
)
def test_a_config_with_other_groups_than_ours_is_left_to_those_who_load_it(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    assert rewrite([f"checkpoint={tmp_path}"], "evaluate") == [f"checkpoint={tmp_path}"]


def test_a_config_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("sim: [1")
    with pytest.raises(UserError, match=r"config\.yaml is damaged .*copy it again"):
        rewrite([f"checkpoint={tmp_path}"], "evaluate")
