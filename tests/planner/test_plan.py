"""What a run needs on a cluster, and what makes it fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import memory_table
import pytest
from composing import PRESETS, completed, composed

from robovlms.commands.plan import plan
from robovlms.config.choices import GpuName
from robovlms.config.presets import options
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.planner.changes import Alternatives
from robovlms.planner.check import check_fits
from robovlms.planner.machines import GPUS
from robovlms.planner.plan import Plan, make_plan
from robovlms.registry import BACKBONES

FLAGSHIP = ("experiment=calvin_perform", "cluster=a100_4x8")


def config_of(*overrides: str) -> TrainConfig:
    config: TrainConfig = completed(composed(*overrides))
    return config


@pytest.fixture(scope="module")
def flagship() -> Plan:
    return make_plan(config_of(*FLAGSHIP), GPUS["a100_80gb"], 1_013_500)


def test_the_flagship_fits_the_cluster_it_names_with_a_tenth_to_spare(flagship: Plan) -> None:
    assert flagship.memory.peak <= 0.9 * 80
    assert flagship.fits


def test_states_of_bfloat16_weights_are_sixteen_bytes_a_parameter(flagship: Plan) -> None:
    assert flagship.memory.states * 1e9 / flagship.trace.trained == pytest.approx(16, rel=0.01)


def test_hours_follow_from_the_windows_and_the_step(flagship: Plan) -> None:
    assert flagship.steps == 5 * (1_013_500 // 128)
    assert flagship.hours == pytest.approx(flagship.steps * flagship.step_seconds / 3600)
    assert 0.2 < flagship.mfu < 0.9


@pytest.mark.extended
def test_four_windows_at_once_under_autocast_do_not_fit_and_the_changes_named_make_them_fit() -> None:
    config = config_of(*FLAGSHIP, "device_batch_size=4", "precision=bf16_autocast")
    found = make_plan(config, GPUS["a100_80gb"])
    assert not found.fits
    assert found.memory.peak == pytest.approx(101, abs=4)  # counted by hand before
    fitting = Alternatives(found).find(found.gpu)
    assert fitting is not None
    assert fitting.overrides
    again = make_plan(
        config_of(*FLAGSHIP, "device_batch_size=4", "precision=bf16_autocast", *fitting.overrides), found.gpu
    )
    assert again.fits
    assert again.memory.peak == pytest.approx(fitting.plan.memory.peak, rel=0.05)


def test_zero1_spreads_what_the_optimizer_keeps_and_fsdp2_everything(flagship: Plan) -> None:
    zero1, fsdp2 = (
        replace(flagship, config=config_of(*FLAGSHIP, f"parallel={mode}")).memory for mode in ("zero1", "fsdp2")
    )
    assert zero1.moments == pytest.approx(flagship.memory.moments / 32)
    assert zero1.weights == flagship.memory.weights
    assert fsdp2.weights == pytest.approx(flagship.memory.weights / 32)


def test_sixty_four_frames_fit_into_sixty_five_gigabytes_with_zero1(flagship: Plan) -> None:
    config = config_of(*FLAGSHIP, "parallel=zero1", "device_batch_size=4")
    assert replace(flagship, config=config).memory.peak <= 65


@pytest.mark.slow
def test_a_run_that_cannot_fit_is_refused_before_anything_is_loaded() -> None:
    many = ("batch_size=16384", "device_batch_size=16384")
    config = config_of("backbone=nano", "precision=fp32", *many, "cluster.gpu=rtx4090")
    with pytest.raises(
        UserError, match=r"peak .* does not fit into rtx4090 .*It fits with device_batch_size=.*planner=off"
    ):
        check_fits(config)
    assert check_fits(replace(config, planner=replace(config.planner, enabled=False))) is None


def test_the_planner_knows_every_gpu_that_may_be_named() -> None:
    assert list(GPUS) == list(GpuName)


@pytest.mark.slow
def test_the_page_says_the_verdict_first_and_what_is_assumed_last() -> None:
    text, fits = plan(config_of("backbone=nano", "backbone.size=tiny", "cluster.gpu=rtx4090"))
    assert fits
    assert text.startswith("peak ")
    assert "fits into rtx4090" in text.splitlines()[0]
    assert "Assumed" in text


@pytest.mark.extended
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("cluster", [name for name in options("cluster") if name != "local"])
def test_every_preset_fits_every_cluster_that_is_named(preset: str, cluster: str) -> None:
    config = config_of(f"experiment={preset}", f"cluster={cluster}")
    assert config.cluster.gpu is not None
    found = make_plan(config, GPUS[config.cluster.gpu])
    assert found.fits, f"{preset} needs {found.memory.peak:.0f} GB"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["kosmos", "paligemma", "qwen2_5_vl", "nano"])
def test_a_checkpoint_that_is_here_is_counted_as_it_is(family: str, tmp_path: Path) -> None:
    backbone = BACKBONES.get(family).tiny()
    backbone.save_pretrained(tmp_path / "vlm")
    overrides = (f"backbone={family}", f"backbone.checkpoint={tmp_path / 'vlm'}", "head.hidden_dim=32")
    found = make_plan(config_of(*overrides, "window=w2_c10", "device_batch_size=1"), GPUS["rtx4090"])
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    assert parameters <= found.trace.parameters < 3 * parameters + 2_000_000
    assert found.fits


@pytest.mark.extended
@pytest.mark.parametrize("backbone", memory_table.BACKBONES)
def test_the_table_of_the_documentation_is_what_is_counted(backbone: str) -> None:
    assert memory_table.row(backbone) in memory_table.PAGE.read_text(encoding="utf-8").splitlines()
