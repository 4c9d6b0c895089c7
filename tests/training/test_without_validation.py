"""Runs that keep nothing for validation: asked for, or because there is one recording alone."""

from __future__ import annotations

import json
import logging

import pytest
from calvin_folder import tiny_run
from composing import completed, composed
from lerobot_folder import write_v2
from mixed_data import mixture

from robovlms.commands.train import train
from robovlms.data.splits import choose_episodes

MEANING = "names:[dx,dy,gripper],representation:delta,frame:world,rotation:none,position_unit:1,control_hz:10"
ARM = f"data.contract={{{MEANING}}}"


def run(root, output_dir, *extra):
    """Train two steps on a LeRobot folder of one camera; return the keys of all metrics."""
    base = [line for line in tiny_run(root, output_dir) if not line.startswith(("data", "experiment"))]
    options = ["data=lerobot", f"data.root={root}", ARM, "view=side", "~data.views.wrist", "~data.shift.wrist"]
    window = ["window=w1_c10", "window.chunk_size=2", "data.num_workers=0"]
    train(completed(composed(*base, *options, *window, "schedule.total=2 step", *extra)))
    return metrics(output_dir)


def metrics(output_dir):
    return {key for line in (output_dir / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}


@pytest.mark.slow
@pytest.mark.plots
@pytest.mark.parametrize(
    ("episodes", "options", "said"),
    [
        (1, [], "lerobot keeps no episode for it"),
        (3, ["data.validation_fraction=0"], "lerobot keeps no episode for it"),
        (3, ["trainer.validate_every=null"], "trainer.validate_every=null says"),
    ],
)
def test_a_run_without_validation_trains_says_so_once_and_draws_what_there_is(
    tmp_path, caplog, episodes, options, said
):
    root = write_v2(tmp_path / "data", lengths=[8] * episodes)
    with caplog.at_level(logging.INFO):
        keys = run(root, tmp_path / "run", *options)
    assert "train/loss" in keys
    assert not any(key.startswith("val/") for key in keys)
    assert sum("validation: " in record.message for record in caplog.records) == caplog.text.count(said) == 1
    assert sorted(path.name for path in (tmp_path / "run/plots").iterdir()) == ["loss.png", "lr.png"]
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 1


@pytest.mark.slow
def test_a_run_with_validation_measures_it(tmp_path):
    assert "val/loss" in run(write_v2(tmp_path / "data"), tmp_path / "run")


@pytest.mark.slow
def test_a_source_of_a_mixture_may_keep_nothing_for_validation(calvin_folder, tmp_path, caplog):
    root = write_v2(tmp_path / "arm", lengths=[24])
    contract = ARM.replace("data.", "data.sources.arm.").replace("position_unit:1", "position_unit:0.02")
    options = mixture(calvin_folder, root, tmp_path / "run", contract)
    options.remove("data.sources.arm.convert.control_hz=10")  # as it is recorded
    train(completed(composed(*options, "schedule.total=2 step")))
    found = metrics(tmp_path / "run")
    assert {"val/loss", "val/play/action_error"} <= found
    assert "val/arm/action_error" not in found
    assert "arm keeps no episode for it" in caplog.text
    assert "no val/ metric" not in caplog.text


@pytest.mark.slow
def test_an_instruction_that_is_too_long_is_told_before_training_with_what_is_enough(tmp_path):
    long = "push " * 40
    root = write_v2(
        tmp_path / "data", lengths=[8] * 4, tasks=["push", long], task_of=[[0] * 8, [0] * 8, [1] * 8, [1] * 8]
    )
    message = r"an instruction has (\d+) tokens, more than backbone\.max_text_tokens=16: 'push .*max_text_tokens=\1 or"
    with pytest.raises(ValueError, match=message) as error:
        run(root, tmp_path / "run", "backbone.max_text_tokens=16")
    enough = str(error.value).split("Set backbone.max_text_tokens=")[1].split()[0]
    assert not (tmp_path / "run/checkpoints").exists()
    assert "train/loss" in run(root, tmp_path / "again", f"backbone.max_text_tokens={enough}")


@pytest.mark.parametrize(("tasks", "fraction"), [(["a"], 0.05), (["a", "b"], 0.0), ([], 0.5)])
def test_a_validation_split_may_be_empty_but_never_the_training_split(tasks, fraction):
    assert choose_episodes(tasks, "validation", fraction, 1.0) == []
    if tasks:
        assert choose_episodes(tasks, "train", fraction, 1.0) == list(range(len(tasks)))
    else:
        with pytest.raises(ValueError, match="there is no episode to train on"):
            choose_episodes(tasks, "train", fraction, 1.0)
