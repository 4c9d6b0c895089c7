"""Every preset composes, with every backbone, and prints; what the command line says wins."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from composing import BACKBONES, PRESETS, completed, composed
from omegaconf import OmegaConf

from robovlms.cli.app import entry
from robovlms.commands.train import train
from robovlms.config.commands import CollectDemosConfig, EvaluateConfig, ServeConfig
from robovlms.config.presets import config_folder, options
from robovlms.config.run import TrainConfig
from robovlms.registry import SIMULATORS

OWN = ("quickstart", "metaworld_mt10", "structure_grid", "finetune_24gb", "finetune_40gb", "finetune_80gb")
PAPER = [preset for preset in PRESETS if preset not in OWN]


def never(config: TrainConfig) -> None:
    raise AssertionError("printing a config must not run it")


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_composes_with_a_backbone(preset: str, backbone: str) -> None:
    config = completed(composed(f"experiment={preset}", f"backbone={backbone}"))
    assert config.backbone.name == backbone
    assert config.name.startswith(f"{preset}_{backbone}")
    assert config.output_dir == f"runs/{config.name}"


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_printed_of_a_preset_is_every_key_with_its_value(preset: str) -> None:
    config = composed(f"experiment={preset}", "backbone=kosmos")
    OmegaConf.resolve(config)
    assert list(config) == list(TrainConfig.__dataclass_fields__)
    assert "${" not in OmegaConf.to_yaml(config)


def test_the_complete_run_is_printed_without_running_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--cfg", "job", "experiment=calvin_perform", "backbone=kosmos"])
    with pytest.raises(SystemExit) as end:
        entry("train", TrainConfig, never)
    assert end.value.code == 0
    printed = OmegaConf.create(capsys.readouterr().out)
    expected = composed("experiment=calvin_perform", "backbone=kosmos")
    OmegaConf.resolve(expected)
    assert OmegaConf.to_container(printed) == OmegaConf.to_container(expected, enum_to_str=True)


@pytest.mark.parametrize("preset", PAPER)
def test_a_preset_of_the_paper_says_how_to_run_it_what_it_costs_and_what_the_paper_reports(preset: str) -> None:
    text = (config_folder() / "experiment" / f"{preset}.yaml").read_text()
    assert re.search(r"^# @package _global_\n# .+\n#\n# Run:     .+", text)
    assert all(word in text for word in ("# Cluster: 4 x 8 A100", "Cost", "# Paper:   "))


GROUPS = sorted(path.name for path in config_folder().iterdir() if path.is_dir() and not path.match("experiment*"))
GROUPS.remove("protocol")  # of another command
NAMED_BY_CONTENT = ("backbone", "head", "structure", "optimizer", "precision", "parallel", "cluster")


@pytest.mark.parametrize("turn", range(max(len(options(group)) for group in GROUPS)))
def test_every_option_composes_and_is_called_what_it_holds(turn: int) -> None:
    chosen = {group: options(group)[turn % len(options(group))] for group in GROUPS}  # all options after the last turn
    config = composed(*(f"{group}={option}" for group, option in chosen.items()))
    assert {group: config[group].name for group in NAMED_BY_CONTENT} == {
        group: chosen[group] for group in NAMED_BY_CONTENT
    }
    assert chosen["window"] == f"w{config.window.window_size}_c{config.window.chunk_size}"
    assert chosen["view"] in ("all", "_".join(config.view.views))
    assert chosen["schedule"].startswith(config.schedule.name)
    assert chosen["sim"].startswith(config.sim.name)


def test_the_command_line_beats_a_preset_and_a_preset_beats_a_group() -> None:
    assert composed("optimizer=adamw").optimizer.lr == 1e-4
    assert composed("optimizer=adamw", "experiment=calvin_backbone").optimizer.lr == 2e-5
    assert composed("optimizer.lr=3e-5", "experiment=calvin_backbone").optimizer.lr == 3e-5
    assert composed("window=w4_c10", "experiment=calvin_backbone").window.window_size == 4


def test_the_other_commands_compose() -> None:
    evaluate = completed(composed("checkpoint=runs/x", config_name="evaluate"), schema=EvaluateConfig)
    assert (evaluate.sim, evaluate.evaluation.enabled) == (None, True)
    collect = completed(composed(config_name="collect_demos"), schema=CollectDemosConfig)
    assert (collect.sim.name, collect.collect.enabled) == ("metaworld", True)
    for protocol in options("protocol"):
        serve = completed(
            composed("checkpoint=runs/x", f"protocol={protocol}", config_name="serve"), schema=ServeConfig
        )
        assert serve.protocol.name == protocol


def test_the_quickstart_collects_trains_and_evaluates_the_same_tasks_without_being_asked_anything() -> None:
    config = composed("experiment=quickstart")
    assert OmegaConf.missing_keys(config) == set()
    assert config.collect.enabled
    assert config.evaluation.enabled
    assert len(config.sim.tasks) == 6


def test_meta_worlds_suites_are_those_of_the_package() -> None:
    pytest.importorskip("metaworld", reason='pip install -e ".[metaworld]"')
    from metaworld.env_dict import MT10_V3, MT50_V3

    for suite, tasks in (("metaworld_mt10", MT10_V3), ("metaworld_mt50", MT50_V3)):
        sim = completed(composed(f"sim={suite}", "data=metaworld")).sim
        names = [task.name for task in SIMULATORS.get("metaworld")(sim).tasks()]
        assert sorted(f"{name}-v3" for name in names) == sorted(tasks)


def test_mt10_collects_fifty_demonstrations_of_each_of_its_ten_tasks_trains_and_evaluates() -> None:
    config = composed("experiment=metaworld_mt10")
    assert OmegaConf.missing_keys(config) == set()
    assert (len(config.sim.tasks), config.collect.demos_per_task) == (10, 50)
    assert config.collect.enabled
    assert config.evaluation.enabled


def test_a_simulator_whose_actions_mean_something_else_stops_before_anything_is_collected(tmp_path: Path) -> None:
    pytest.importorskip("metaworld", reason='pip install -e ".[metaworld]"')
    places = [f"data.root={tmp_path}/demos", f"output_dir={tmp_path}/run"]
    with pytest.raises(ValueError, match=r"control_hz: policy 20\.0, sim=metaworld 80\.0"):
        train(completed(composed("experiment=quickstart", "sim.control_hz=80", *places)))
    assert not (tmp_path / "demos").exists()


def test_the_meta_world_data_means_what_the_simulator_means() -> None:
    config = completed(composed("data=metaworld", "sim=metaworld"))
    simulator = SIMULATORS.get("metaworld")(config.sim)
    assert asdict(config.data.contract) == asdict(simulator.contract)
