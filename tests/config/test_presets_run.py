"""Every preset takes a real step: its backbone tiny, its data a miniature of its format, all else its own."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from composing import PRESETS, completed, composed
from miniatures import make_miniature

from robovlms.commands.train import train

STEP = [
    "backbone.size=tiny", "batch_size=2", "device_batch_size=1", "schedule.total=1 step", "schedule.warmup=0 step",
    "trainer.max_validation_batches=1", "data.num_workers=0", "data.cache_mb=0", "collect.enabled=false",
    "evaluation.enabled=false", "trainer.num_threads=1",
]  # fmt: skip


IN_CI = ("calvin_perform", "real_perform", "finetune_24gb", "quickstart")  # one of every kind


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset",
    [pytest.param(preset, marks=[] if preset in IN_CI else pytest.mark.extended) for preset in PRESETS],
)
def test_a_preset_takes_a_step_validates_and_saves(preset: str, tmp_path: Path) -> None:
    config = completed(composed(f"experiment={preset}", f"output_dir={tmp_path}/run", *STEP))
    checkpoint = train(replace(config, data=make_miniature(config.data, tmp_path / "data")))
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {key: value for row in rows for key, value in row.items() if key in ("train/loss", "val/loss")}
    assert sorted(losses) == ["train/loss", "val/loss"]
    assert all(math.isfinite(value) for value in losses.values())
    assert checkpoint == tmp_path / "run/checkpoints/step_000001"
    assert (checkpoint / "model.safetensors").is_file()
