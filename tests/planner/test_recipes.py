"""The recipes for one GPU fit their cards, and what does not fit is told what would."""

from __future__ import annotations

import re
from dataclasses import replace

import one_gpu_table
import pytest
from composing import completed, composed

from robovlms.config.run import TrainConfig
from robovlms.config.training import Rounding
from robovlms.errors import UserError
from robovlms.planner.changes import Alternatives
from robovlms.planner.check import check_fits
from robovlms.planner.machines import GPUS
from robovlms.planner.plan import make_plan
from robovlms.planner.text import describe

WIDE = ("backbone=nano", "window=w1_c10", "device_batch_size=1", "cluster.gpu=rtx4090", "backbone.num_heads=64")


def config_of(*overrides: str) -> TrainConfig:
    config: TrainConfig = completed(composed(*overrides))
    return config


@pytest.mark.extended
@pytest.mark.parametrize("backbone", one_gpu_table.BACKBONES)
@pytest.mark.parametrize("recipe", one_gpu_table.RECIPES)
def test_a_recipe_fits_its_card_with_a_tenth_to_spare_as_the_page_says(recipe: str, backbone: str) -> None:
    plan = one_gpu_table.counted(recipe, backbone)
    assert plan.memory.peak <= 0.9 * plan.gpu.memory_gb
    assert f"{plan.gpu.memory_gb:.0f}gb" in recipe
    assert one_gpu_table.line(recipe, backbone, plan) in one_gpu_table.PAGE.read_text(encoding="utf-8").splitlines()


def test_the_page_has_a_line_for_every_recipe_and_backbone() -> None:
    found = re.findall(r"^\| `(finetune_\w+)` \| (\w+) \|", one_gpu_table.PAGE.read_text(encoding="utf-8"), re.M)
    assert found == [(recipe, backbone) for recipe in one_gpu_table.RECIPES for backbone in one_gpu_table.BACKBONES]


@pytest.mark.slow
def test_weights_without_masters_are_six_bytes_in_all() -> None:
    plan = make_plan(config_of(*WIDE, "optimizer.moments=int8"), GPUS["rtx4090"])
    changed = {
        rounding: replace(plan, config=config_of(*WIDE, "optimizer.moments=int8", f"optimizer.rounding={rounding}"))
        for rounding in Rounding
    }
    low, weights = plan.trace.low_trained, {rounding: each.memory.masters for rounding, each in changed.items()}
    assert {rounding: 1e9 * weight / low for rounding, weight in weights.items()} == pytest.approx(
        {Rounding.masters: 4, Rounding.kahan: 2, Rounding.stochastic: 0, Rounding.nearest: 0}
    )
    assert plan.memory.copies > changed[Rounding.stochastic].memory.copies


@pytest.mark.slow
def test_decoders_too_large_to_train_are_refused_with_adapters_that_fit() -> None:
    config = config_of(*WIDE, "backbone.hidden_dim=8192", "backbone.num_layers=8")
    with pytest.raises(UserError, match=r"It fits with backbone\.lora\.rank=16 .*which trains adapters") as error:
        check_fits(config)
    told = re.search(r"It fits with ([^(]*) \((.*) GB\)", str(error.value))
    assert told is not None
    again = make_plan(
        config_of(*WIDE, "backbone.hidden_dim=8192", "backbone.num_layers=8", *told[1].split()), GPUS["rtx4090"]
    )
    assert again.fits
    assert again.memory.peak == pytest.approx(float(told[2]), abs=0.1)


@pytest.mark.extended
def test_decoders_too_large_for_adapters_alone_are_kept_in_four_bits() -> None:
    found = make_plan(config_of(*WIDE, "backbone.hidden_dim=16384", "backbone.num_layers=4"), GPUS["rtx4090"])
    fitting = Alternatives(found).find(found.gpu)
    assert fitting is not None
    assert "backbone.quantization=nf4" in fitting.overrides
    assert fitting.trains_less
    assert "(trains less)" in describe(found, [("rtx4090", fitting)])


@pytest.mark.extended
def test_what_nothing_helps_is_refused_and_says_so() -> None:
    config = config_of(*WIDE, "backbone.hidden_dim=32768", "backbone.num_layers=8", "backbone.lora.rank=16")
    with pytest.raises(UserError, match=r"Nothing makes it fit, not even adapters .*choose a smaller backbone"):
        check_fits(config)
