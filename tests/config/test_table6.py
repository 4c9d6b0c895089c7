"""Table VI of the paper (arXiv:2412.14058, appendix), typed a second time: every preset composes to exactly its row."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from composing import completed, composed

from robovlms.config.choices import ScheduleName, Structure


class Row(NamedTuple):
    window: int
    views: list[str]
    warmup: str
    lr: float
    total: str
    batch: int = 128


BOTH = ["side", "wrist"]
ROWS = {
    "calvin_perform": Row(16, BOTH, "0.25 epoch", 1e-4, "5 epoch"),
    "simplerenv_perform": Row(16, ["side"], "5000 step", 1e-4, "50000 step"),
    "calvin_vl_pretrain": Row(16, BOTH, "0.25 epoch", 1e-4, "5 epoch"),
    "real_perform": Row(8, BOTH, "0.25 epoch", 1e-4, "5 epoch"),
    "vla_structure": Row(16, BOTH, "0.25 epoch", 1e-4, "5 epoch"),
    "calvin_generalization": Row(16, BOTH, "0.25 epoch", 1e-4, "5 epoch"),
    "calvin_data_efficiency": Row(16, BOTH, "0.25 epoch", 1e-4, "5 epoch"),
    "calvin_backbone": Row(8, ["side"], "0.25 epoch", 2e-5, "5 epoch"),
    "simpler_training_recipe": Row(16, ["side"], "5000 step", 2e-5, "50000 step"),
    "calvin_few_shot": Row(16, ["side"], "0 step", 2e-5, "5000 step"),
    # Where the appendix's text disagrees with its table:
    "simplerenv_perform_appendix": Row(16, ["side"], "5000 step", 1e-4, "100000 step", 512),
    "real_perform_appendix": Row(8, BOTH, "0.25 epoch", 1e-4, "5 epoch", 512),
}
VLA_STRUCTURE_LLAVA = Row(8, BOTH, "0.25 epoch", 2e-5, "5 epoch")


def check(config: Any, row: Row) -> None:
    found = Row(
        config.window.window_size,
        config.view.views,
        config.schedule.warmup,
        config.optimizer.lr,
        config.schedule.total,
        config.batch_size,
    )
    assert found == row
    assert config.window.chunk_size == 10
    assert config.optimizer.name == "adamw"
    assert config.schedule.name is ScheduleName.constant
    assert config.structure.name is Structure.policy_head
    assert config.head.name == "lstm"


@pytest.mark.parametrize("preset", ROWS)
@pytest.mark.parametrize("backbone", ["kosmos", "paligemma", "llava"])
def test_a_preset_composes_to_its_row_with_any_backbone(preset: str, backbone: str) -> None:
    is_exception = (preset, backbone) == ("vla_structure", "llava")
    config = completed(composed(f"experiment={preset}", f"backbone={backbone}"))
    check(config, VLA_STRUCTURE_LLAVA if is_exception else ROWS[preset])


def test_the_default_backbone_is_the_papers_best() -> None:
    assert composed("experiment=calvin_perform").backbone.name == "kosmos"


@pytest.mark.parametrize(("preset", "num_micro_steps"), [("calvin_perform", 2), ("simplerenv_perform_appendix", 8)])
def test_on_the_papers_cluster_two_windows_at_once_make_the_papers_batch(preset: str, num_micro_steps: int) -> None:
    config = composed(f"experiment={preset}", "cluster=a100_4x8")
    assert config.batch_size == config.cluster.num_processes * config.device_batch_size * num_micro_steps
