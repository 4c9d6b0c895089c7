"""`data=/path/robot.yaml`: a file of one's own is an option, and what it asks and guesses is said."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from own_folders import paths_of, write_lerobot

from robovlms.cli.app import entry
from robovlms.config.commands import InspectConfig
from robovlms.config.run import TrainConfig

pytestmark = pytest.mark.slow

ROBOT = """\
# My robot.
defaults:
  - /schema/data/lerobot@_here_
  - _self_

name: lerobot
root: /my/folder
views:
  top: observation.images.top
  hand: observation.images.hand  # 32 x 32 px
contract:
  names: [j1, j2,
    gripper]  # as the folder names them
  representation: absolute  # guess: they begin away from 0
  frame: ???  # which axes, 'base' or "joint"?
  position_unit: null
  gripper_closed: ???
  control_hz: 10
normalization: {mode: quantile}
shift: {}
"""


@pytest.fixture
def robot(tmp_path) -> Path:
    path = tmp_path / "my robot.yaml"
    path.write_text(ROBOT)
    return path


def run(arguments: list[str], monkeypatch, name: str = "train", schema: type = TrainConfig) -> tuple[int, list[Any]]:
    """Run a command line; return its exit status and the configs that reached the job."""
    configs: list[Any] = []
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    with pytest.raises(SystemExit) as end:
        entry(name, schema, configs.append)
    return int(str(end.value.code or 0)), configs


ANSWERS = ["data.contract.frame=joint", "data.contract.gripper_closed=0"]


def test_a_file_is_an_option_by_absolute_and_relative_path(robot, monkeypatch, caplog):
    monkeypatch.chdir(robot.parent)
    for place in (str(robot), robot.name, f"./{robot.name}"):
        status, (config,) = run([f"data={place}", *ANSWERS], monkeypatch)
        assert (status, config.data.name, config.data.root) == (0, "lerobot", "/my/folder")
        assert (config.data.contract.names, config.data.contract.gripper_closed) == (["j1", "j2", "gripper"], 0)


def test_the_policy_looks_through_every_camera_of_the_file_unless_a_view_is_chosen(robot, monkeypatch):
    for given, views in (([], ["top", "hand"]), (["view.views=[hand]"], ["hand"])):
        _, (config,) = run([f"data={robot}", *ANSWERS, *given], monkeypatch)
        assert config.view.views == views


def test_what_is_unanswered_is_asked_with_the_files_line_and_question(robot, monkeypatch, capsys):
    status, configs = run([f"data={robot}"], monkeypatch)
    told = capsys.readouterr().err
    assert (status, configs) == (2, [])
    assert f"data.contract.frame: {robot}, line 15: which axes, 'base' or \"joint\"?" in told
    assert f"data.contract.gripper_closed: {robot}, line 17\n" in told
    assert "line 18" not in told
    status, _ = run([f"data={robot}", ANSWERS[0]], monkeypatch)
    told = capsys.readouterr().err
    assert status == 2
    assert "gripper_closed" in told
    assert "line 15" not in told


def test_a_view_may_be_asked_too(robot, monkeypatch, capsys):
    robot.write_text(ROBOT.replace("observation.images.top", "???  # which camera?"))
    assert run([f"data={robot}", *ANSWERS], monkeypatch)[0] == 2
    assert f"data.views.top: {robot}, line 9: which camera?" in capsys.readouterr().err


def test_guesses_are_logged_when_a_run_starts_unless_they_are_answered(robot, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        run([f"data={robot}", *ANSWERS], monkeypatch)
    assert "contract.representation=absolute (line 14: they begin away from 0)" in caplog.text
    caplog.clear()
    run([f"data={robot}", *ANSWERS, "data.contract.representation=delta"], monkeypatch)
    assert "guesses" not in caplog.text


def test_a_file_may_be_a_source_of_a_mixture(robot, monkeypatch, capsys):
    mixture = ["data=mixture", f"+data@data.sources.mine={robot}", "data.contract.frame=joint", "view.views=[top]",
               "data.contract.names=[j1,j2,gripper]", "data.contract.representation=absolute",
               "data.contract.control_hz=10", "data.contract.rotation=none", "~data.shift.side"]  # fmt: skip
    status, _ = run(mixture, monkeypatch)
    assert f"data.sources.mine.contract.frame: {robot}, line 15" in capsys.readouterr().err
    answers = [answer.replace("data.", "data.sources.mine.") for answer in ANSWERS]
    status, (config,) = run([*mixture, *answers], monkeypatch)
    assert (status, config.data.sources["mine"].root) == (0, "/my/folder")


def test_a_sweep_runs_over_files(robot, monkeypatch, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(ROBOT.replace("/my/folder", "/other"))
    arguments = ["--multirun", f"data={robot},{other}", *ANSWERS, f"output_dir={tmp_path}/out"]
    status, configs = run(arguments, monkeypatch)
    assert (status, [config.data.root for config in configs]) == (0, ["/my/folder", "/other"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: lerobot\n", "is not typed: it must begin with 'defaults: [/schema/data/lerobot@_here_, _self_]'"),
        ("a: [1\n", "is not valid YAML"),
        ("", "is not typed"),
        ("- 1\n", "is not typed"),
        (ROBOT.replace("contract:", "contractt:"), "no option 'data.contractt'. Did you mean 'data.contract'?"),
        (ROBOT.replace("frame: ???", "frame: bas"), "data.contract.frame=bas does not exist. Did you mean 'base'?"),
    ],
)
def test_a_file_that_is_no_option_is_named(tmp_path, monkeypatch, capsys, text, told):
    path = tmp_path / "robot.yaml"
    path.write_text(text)
    status, configs = run([f"data={path}"], monkeypatch)
    error = capsys.readouterr().err
    assert (status, configs) == (2, [])
    assert told in error
    assert str(path) in error


def test_a_file_that_is_not_there_says_who_writes_one(robot, monkeypatch, capsys):
    status, _ = run([f"data={robot.parent}/my robt.yaml"], monkeypatch)
    told = capsys.readouterr().err
    assert status == 2
    assert "does not exist. Did you mean 'my robot.yaml'?" in told
    assert "inspect_data.py data.root=<folder> write=" in told


def inspect(arguments: list[str], monkeypatch) -> tuple[int, list[Any]]:
    return run(arguments, monkeypatch, "inspect_data", InspectConfig)


def test_inspecting_a_folder_says_what_it_holds_and_goes_on_when_nothing_is_asked(tmp_path, monkeypatch, capsys):
    root = write_lerobot(tmp_path / "x", [f"left_arm_{i}" for i in range(3)], paths_of(3))
    status, (config,) = inspect([f"data.root={root}", "episode=1", "window=w1_c10"], monkeypatch)
    told = capsys.readouterr().out
    assert (status, config.data.root, config.view.views, config.episode) == (0, str(root), ["side"], 1)
    assert "a LeRobot data set v2.1: 3 episodes, 72 frames" in told
    assert "camera side: observation.images.side, 32 x 32 px" in told


def test_inspecting_a_folder_that_asks_stops_with_the_questions_and_goes_on_with_answers(tmp_path, monkeypatch, capsys):
    root = write_lerobot(tmp_path / "x", None, paths_of(3, size=900))
    assert inspect([f"data.root={root}"], monkeypatch) == (0, [])
    assert "Pages need answers: data.contract.frame=..." in capsys.readouterr().out
    for answer in ("data.contract.frame=image", "data.contract={frame: image}"):
        status, configs = inspect([f"data.root={root}", answer], monkeypatch)
        assert (status, len(configs)) == (0, 1)


def test_what_is_found_is_written_once_under_a_name_that_data_takes(tmp_path, monkeypatch, capsys):
    root = write_lerobot(tmp_path / "x", None, paths_of(3, size=900))
    target = tmp_path / "new/robot.yaml"
    assert inspect([f"data.root={root}", f"write={target}"], monkeypatch) == (0, [])
    assert f"python train.py data={target}" in capsys.readouterr().out
    assert run([f"data={target}", "data.contract.frame=image"], monkeypatch)[0] == 0
    target.write_text("answered")
    assert inspect([f"data.root={root}", f"write={target}"], monkeypatch)[0] == 2
    assert target.read_text() == "answered"
    assert inspect([f"data.root={root}", f"write={tmp_path}/robot.txt"], monkeypatch)[0] == 2
    assert "must end in .yaml" in capsys.readouterr().err
