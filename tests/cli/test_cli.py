from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from composing import composed

from robovlms.cli.app import entry, help_page, report, to_dataclass
from robovlms.cli.errors import explain
from robovlms.config.commands import CollectDemosConfig, EvaluateConfig
from robovlms.config.presets import config_folder
from robovlms.config.run import TrainConfig


def start(arguments: list[str], main: Callable[[TrainConfig], None], monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as end:
        entry("train", TrainConfig, main)
    return end.value.code


def message(*overrides: str, schema: type = TrainConfig, config_name: str = "train") -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - Hydra's, OmegaConf's or ours: explain knows
        to_dataclass(composed(*overrides, config_name=config_name), schema)
    text = explain(caught.value, schema)
    assert text is not None
    return text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lrr=1", "there is no option 'optimizer.lrr'. Did you mean 'optimizer.lr'?"),
        ("+optimizer.lrr=1", "there is no option 'optimizer.lrr'. Did you mean 'optimizer.lr'?"),
        ("optimiser.lr=1", "there is no option 'optimiser.lr'. Did you mean 'optimizer.lr'?"),
        ("lr=1", "there is no option 'lr'. Did you mean 'optimizer.lr'?"),
        ("backbon=kosmos", "there is no option 'backbon'. Did you mean 'backbone'?"),
        ("data.contract.frames=tcp", "there is no option 'data.contract.frames'. Did you mean 'data.contract.frame'?"),
        ("head.loss=hubber", "head.loss=hubber does not exist. Did you mean 'huber'? Options: huber, mse, l1."),
        (
            "head=lsmt",
            "head=lsmt does not exist. Did you mean 'lstm'? Options: diffusion, fast, flow, gpt",
        ),
        ("backbone=kosmo", "backbone=kosmo does not exist. Did you mean 'kosmos'? Options: "),
        ("experiment=calvin_perfom", "experiment=calvin_perfom does not exist. Did you mean 'calvin_perform'?"),
        ("batch_size=many", "batch_size: Value 'many' of type 'str' could not be converted to Integer"),
        ("name=${backbone.nam}", "name refers to ${backbone.nam}, which is no option. Did you mean 'backbone.name'?"),
        ("data.root", "cannot read 'data.root' on the command line"),
    ],
)
def test_a_slip_on_the_command_line_is_named_with_the_nearest_spelling(override: str, expected: str) -> None:
    assert message(override).startswith(expected)


def test_an_option_that_another_choice_has_is_not_called_a_typo() -> None:
    assert message("head=mlp", "head.num_layers=2") == (
        "there is no option 'head.num_layers' with this head; another choice of head= has it."
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("optimizer:\n  lrr: 1", "in configs/experiment/mine.yaml: there is no option 'optimizer.lrr'. Did you mean"),
        (
            "head:\n  loss: hubber",
            "in configs/experiment/mine.yaml: head.loss=hubber does not exist. Did you mean 'huber'",
        ),
        (
            "batch_sise: 2",
            "in configs/experiment/mine.yaml: there is no option 'batch_sise'. Did you mean 'batch_size'?",
        ),
        (
            "defaults:\n  - override /backbon: nano",
            "in configs/experiment/mine.yaml: there is no option 'backbon'. Did",
        ),
        ("defaults:\n  - override /backbone: nan", "backbone=nan does not exist. Did you mean 'nano'?"),
        ("optimizer: {lr: 1", "while parsing a flow mapping"),
    ],
)
def test_a_slip_inside_a_preset_is_named_with_its_file(body: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{body}\n")
    assert message("experiment=mine", f"hydra.searchpath=[file://{tmp_path}]").startswith(expected)


def test_values_only_the_user_knows_are_asked_for_with_examples() -> None:
    ask = "not set. Say on the command line, e.g."
    assert message() == f"data.root: {ask} data.root=/path/to/task_ABCD_D"
    assert message("data=metaworld") == f"data.root: {ask} data.root=/path/to/dataset"
    assert "data.contract.frame=tcp" in message("data=lerobot")
    assert "data.contract.position_unit=1.0" in message("data=lerobot", "data.contract.frame=base")
    assert "position_unit" not in message("data=lerobot", "data.contract.frame=joint")
    assert message(schema=CollectDemosConfig, config_name="collect_demos") == f"root: {ask} root=datasets/demos"
    assert message(schema=EvaluateConfig, config_name="evaluate").startswith(f"checkpoint: {ask} checkpoint=runs/")


@pytest.mark.parametrize(
    ("error", "status", "shown"),
    [
        (ValueError("optimizer.lr=-1 must be positive."), 2, "error: optimizer.lr=-1 must be positive.\n"),
        (FileNotFoundError("/data is not there."), 2, "error: /data is not there.\n"),
        (PermissionError("/runs is not yours."), 2, "error: /runs is not yours.\n"),
        (ImportError("no wandb", name="wandb"), 2, "pip install -e '.[<extra>]'"),
        (ImportError("no train", name="robovlms.commands.train"), 1, "Traceback"),
        (RuntimeError("a bug"), 1, "RuntimeError: a bug"),
    ],
)
def test_a_users_error_is_one_block_and_the_programs_a_traceback(
    error: Exception, status: int, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        raise error
    except Exception as raised:
        caught = raised
    assert report(caught, "train") == status
    assert shown in (stderr := capsys.readouterr().err)
    assert ("Traceback" in stderr or "RuntimeError" in stderr) == (status == 1)
    monkeypatch.setenv("ROBOVLMS_TRACEBACK", "1")
    assert report(caught, "train") == status
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_ends_a_run_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(config: TrainConfig) -> None:
        raise KeyboardInterrupt

    assert start(["data.root=/data"], interrupt, monkeypatch) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_the_jobs_of_a_multirun_have_folders_of_their_own_and_survive_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configs = []

    def train(config: TrainConfig) -> None:
        configs.append(config)
        if config.optimizer.lr == 1e-4:
            raise ValueError("the first job fails")

    monkeypatch.chdir(tmp_path)
    arguments = ["--multirun", "data.root=/data", "output_dir=out", "optimizer.lr=1e-4,2e-5"]
    assert start(arguments, train, monkeypatch) == 2
    assert [config.output_dir for config in configs] == ["out/0_lr=0.0001", "out/1_lr=2e-05"]
    assert [config.optimizer.lr for config in configs] == [1e-4, 2e-5]
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out", "out/multirun.yaml"]


def test_the_grid_of_appendix_c_is_six_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    arguments = ["experiment=calvin_perform", "data.root=/data", "sweep=appendix_c", f"output_dir={tmp_path}"]
    assert start(arguments, seen.append, monkeypatch) == 0
    points = {(config.optimizer.weight_decay, config.optimizer.lr) for config in seen}
    assert points == {(decay, lr) for decay in (0.0, 0.1) for lr in (1e-4, 2e-5, 1e-5)}
    assert len({config.output_dir for config in seen}) == 6


def test_a_run_reaches_main_typed_and_leaves_no_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.chdir(tmp_path)
    assert start(["experiment=quickstart"], seen.append, monkeypatch) == 0
    assert [type(config) for config in seen] == [TrainConfig]
    assert seen[0].output_dir == "runs/quickstart_nano"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rank", "level"), [("0", logging.INFO), ("3", logging.WARNING)])
def test_only_the_first_process_of_a_launch_is_talkative(
    rank: str, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", logging.NOTSET)
    monkeypatch.setenv("RANK", rank)
    start(["--help"], lambda config: None, monkeypatch)
    assert root.level == level


def test_the_help_page_shows_groups_presets_examples_and_how_to_resume() -> None:
    page = help_page("train")
    assert re.search(r"\n  backbone    [a-z0-9_ ]* kosmos\* ", page)
    assert "  calvin_perform               CALVIN performance, ABCD -> D (paper: Tab. II and VI)\n" in page
    assert len([line for line in page.splitlines() if line.startswith(("  python train.py", "  torchrun"))]) == 3
    assert "trainer.resume=auto" in page
    assert all(len(line) <= 120 for line in page.splitlines())
    assert "experiment_backbone" not in page
    assert "  sim         metaworld*\n" in help_page("collect_demos")
    assert "  sim         metaworld\n" in help_page("evaluate")


def test_an_installation_without_configs_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert config_folder().name == "configs"
    monkeypatch.setattr("robovlms.config.presets.__file__", str(tmp_path / "robovlms" / "config" / "presets.py"))
    with pytest.raises(FileNotFoundError, match="Clone the repository"):
        config_folder()
