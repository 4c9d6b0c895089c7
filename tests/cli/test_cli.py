from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from pathlib import Path

import pytest
from composing import composed

from robovlms import __version__
from robovlms.cli.app import entry
from robovlms.cli.errors import explain, option_names
from robovlms.cli.help import help_page
from robovlms.cli.jobs import to_dataclass
from robovlms.cli.output import report
from robovlms.config.commands import CollectDemosConfig, EvaluateConfig, ServeConfig
from robovlms.config.presets import config_folder
from robovlms.config.run import TrainConfig
from robovlms.config.schemas import schemas
from robovlms.errors import UserError


def start(arguments: list[str], main: Callable[[TrainConfig], None], monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as end:
        entry("train", TrainConfig, main)
    return end.value.code


def never(config: object) -> None:
    raise AssertionError("a mistake must not reach the job")


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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            "--experiment=quickstart",
            "--experiment is no flag. Options are written without dashes: experiment=quickstart",
        ),
        ("--mulitrun seed=1,2", "--mulitrun is no flag. Did you mean '--multirun'?"),
        ("--lr 1e-3", "--lr is no flag. Options are written without dashes: lr=<value>."),
        ("optimizer.learning_rate=1", "there is no option 'optimizer.learning_rate'. Did you mean 'optimizer.lr'?"),
        ("trainer.max_steps=4", "there is no option 'trainer.max_steps'. Did you mean 'schedule.total'?"),
        ("optimizer.wieght_decay=4", "there is no option 'optimizer.wieght_decay'. Did you mean 'optimizer.weight_d"),
        ("model=nano", "there is no option 'model'. Did you mean 'backbone'?"),
        ("~data", "~data: data cannot be left out: choose one of "),
        ("~structure", "~structure: structure cannot be left out: choose one of interleaved, one_step, policy_head."),
        ("~head.dropout", "head.dropout cannot be left out: set a value, head.dropout=<value>."),
        ("~head.drpout", "there is no option 'head.drpout'. Did you mean 'head.dropout'?"),
        ("backbone=[nano,kosmos]", "backbone=[nano,kosmos]: backbone is one choice, e.g. backbone=nano. For several"),
        ("backbone=nano,kosmos", "backbone=nano,kosmos: for several runs, one after another, add --multirun"),
        ("optimizer=1", "optimizer=1 does not exist. Options: adamw."),
        ("backbone.lora=4", "backbone.lora has options of its own: backbone.lora.alpha, backbone.lora.dropout,"),
        ("view.views=side", "view.views is a list: write view.views=[side]."),
        ("optimizer.lr=null", "optimizer.lr=null is not possible: give a value, or leave the option as it is."),
        ("experiment=quickstart evaluation.execute_steps=40", "evaluation.execute_steps=40 must be at most window.chu"),
        ("optimizer.betas=0.9", "optimizer.betas is a list: write optimizer.betas=[0.9]."),
        ("trainer.resume=true", "trainer.resume=true: write auto for the newest checkpoint of output_dir, never, or"),
        ("sim.max_steps=3", "sim.max_steps: no sim is chosen, so it has no options. Add one, e.g. sim=calvin."),
        ("cotrain.weight=3", "cotrain.weight: no cotrain is chosen, so it has no options. Add one, e.g. cotrain=vl."),
        ("data.views.front=x", "data.views has no 'front' yet: add it with +data.views.front=<value>."),
    ],
)
def test_a_command_line_of_another_program_is_answered_with_what_to_write_here(
    arguments: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(["data.root=/x", *arguments.split()], never, monkeypatch) == 2
    assert capsys.readouterr().err.startswith(f"error: {expected}")


@pytest.mark.parametrize("key", ["experiment", "trainer.resume", "backbone", "data.root"])
def test_options_of_training_given_to_another_command_are_called_so(
    key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "checkpoint=runs/x", f"{key}=auto"])
    with pytest.raises(SystemExit):
        entry("evaluate", EvaluateConfig, never)
    told = f"error: there is no option '{key}' here: it is one of train.py. This command takes checkpoint, checkpoints"
    assert capsys.readouterr().err.startswith(told)


def test_a_view_can_be_mapped_as_yaml_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainConfig] = []
    assert start(["data.root=/x", "view.views=[front]", "data.views={front: rgb_front}"], seen.append, monkeypatch) == 0
    assert seen[0].data.views["front"] == "rgb_front"


@pytest.mark.parametrize(("old", "new"), [("true", "full"), ("false", "none"), ("True", "full")])
def test_gradient_checkpointing_keeps_its_meaning_under_its_new_name(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TrainConfig] = []
    assert start(["data.root=/x", f"backbone.gradient_checkpointing={old}"], seen.append, monkeypatch) == 0
    assert seen[0].backbone.checkpointing == new


def test_names_that_changed_are_understood_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[TrainConfig] = []
    old = ["+data@data.parts.mine=bridge", "data.parts.mine.root=/x", "data.parts.mine.weight=2"]
    assert start(["data=oxe", "view=side", "data.root=/x", *old], seen.append, monkeypatch) == 0
    assert seen[0].data.sources["mine"].weight == 2  # type: ignore[attr-defined]
    assert [record.message for record in caplog.records if "the old names will go" in record.message] != []
    assert len(caplog.records) == 1


def test_the_version_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(["--version"], never, monkeypatch) == 0
    assert capsys.readouterr().out == f"robovlms {__version__}\n"


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
        (UserError("optimizer.lr=-1 must be positive."), 2, "error: optimizer.lr=-1 must be positive.\n"),
        (FileNotFoundError("/data is not there."), 2, "error: /data is not there.\n"),
        (PermissionError("/runs is not yours."), 2, "error: /runs is not yours.\n"),
        (
            ImportError("no wandb", name="wandb"),
            2,
            "error: no wandb: run `pip install -e '.[wandb]'` in the repository.\n",
        ),
        (ImportError("no numpy", name="numpy.core"), 2, "run `pip install -e .` in the repository"),
        (ImportError("no seaborn", name="seaborn"), 2, "error: no seaborn.\n"),
        (IsADirectoryError(21, "Is a directory", "/x"), 2, "error: /x: Is a directory.\n"),
        (OSError(28, "No space left on device", "/x"), 2, "error: /x: No space left on device. Free some space"),
        (OSError(9, "Bad file descriptor"), 1, "Traceback"),
        (FileExistsError("output_dir=x exists: choose another."), 2, "error: output_dir=x exists: choose another.\n"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 2, "Lower device_batch"),
        (MemoryError(), 2, "error: not enough memory. Lower device_batch_size"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), 2, "lower data.num_workers"),
        (BrokenProcessPool("A process in the process pool was terminated abruptly"), 2, "lower data.num_workers"),
        (FloatingPointError("the loss is not finite at step 3"), 2, "error: the loss is not finite at step 3\n"),
        (ValueError("shapes do not match"), 1, "ValueError: shapes do not match"),
        (KeyError("a"), 1, "KeyError: 'a'"),
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
    assert report(caught, TrainConfig)[0] == status
    assert shown in (stderr := capsys.readouterr().err)
    assert ("Traceback" in stderr) == (status == 1)
    monkeypatch.setenv("ROBOVLMS_TRACEBACK", "1")
    assert report(caught, TrainConfig)[0] == status
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_ends_a_run_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(config: TrainConfig) -> None:
        raise KeyboardInterrupt

    assert start(["data.root=/data"], interrupt, monkeypatch) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


@pytest.mark.slow
def test_the_jobs_of_a_multirun_have_folders_of_their_own_and_survive_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configs = []

    def train(config: TrainConfig) -> None:
        configs.append(config)
        if config.optimizer.lr == 1e-4:
            raise UserError("the first job fails")

    monkeypatch.chdir(tmp_path)
    arguments = ["--multirun", "data.root=/data", "output_dir=out", "optimizer.lr=1e-4,2e-5"]
    assert start(arguments, train, monkeypatch) == 2
    assert [config.output_dir for config in configs] == ["out/0_lr-0.0001", "out/1_lr-2e-05"]
    assert [config.optimizer.lr for config in configs] == [1e-4, 2e-5]
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out", "out/multirun.yaml"]


@pytest.mark.slow
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
    assert re.search(r"\n  sim         calvin [a-z0-9_ ]*metaworld\*", help_page("collect_demos"))
    assert re.search(r"\n  sim         calvin [a-z0-9_ ]*metaworld[ \n]", help_page("evaluate"))


def test_an_installation_without_configs_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert config_folder().name == "configs"
    monkeypatch.setattr("robovlms.config.presets.__file__", str(tmp_path / "robovlms" / "config" / "presets.py"))
    with pytest.raises(FileNotFoundError, match="lacks the presets"):
        config_folder()


def test_every_option_of_every_schema_is_known_however_deep_it_inherits() -> None:
    known = {*option_names(TrainConfig), *option_names(ServeConfig)}
    for place, schema in schemas().items():
        group, is_of_group, _ = place.partition("/")
        if is_of_group:
            lost = {f"{group}.{field.name}" for field in fields(schema)} - known
            assert not lost, place


def test_an_option_of_another_head_is_told_as_such() -> None:
    told = message("data=calvin", "head=mlp", "head.eta=1")
    assert told == "there is no option 'head.eta' with this head; another choice of head= has it."
