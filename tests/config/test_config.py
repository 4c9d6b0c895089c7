from __future__ import annotations

import re
from dataclasses import fields, is_dataclass

import pytest
from composing import completed, composed

from robovlms.config.choices import Duration, Unit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.25 epoch", Duration(0.25, Unit.epoch)),
        ("5 epochs", Duration(5.0, Unit.epoch)),
        ("5000 step", Duration(5000.0, Unit.step)),
        ("50_000 steps", Duration(50000.0, Unit.step)),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, expected: Duration) -> None:
    assert Duration.parse(text) == expected


def test_epochs_become_steps_once_the_steps_of_an_epoch_are_known() -> None:
    assert Duration.parse("0.25 epoch").steps(7918) == 1980  # 1979.5
    assert Duration.parse("5000 step").steps(7918) == 5000


@pytest.mark.parametrize("text", ["5", "epoch", "5 epocs", "five epoch", "1.2.3 step", ""])
def test_anything_else_is_refused_with_both_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"schedule\.total=.*0\.25 epoch"):
        Duration.parse(text, "schedule.total")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "structure.name=one_step",
            "structure=one_step sees one frame, but window.window_size=16: choose window=w1_c10",
        ),
        (
            "structure.name=interleaved",
            "structure=interleaved with head=lstm is not allowed: the VLM has already seen the earlier frames: use",
        ),
        ("window.window_size=0", "must be at least 1"),
        ("view.views=[sid]", "'sid', which the data config does not map. Did you mean 'side'? It maps side, wrist"),
        ("view.views=[side,side]", "must name each camera once"),
        ("view.views=[]", "must name each camera once"),
        ("data.proprio_key=robot_obs", "data.proprio_key=robot_obs and data.proprio_names=[] belong together"),
        ("device_batch_size=3", "batch_size=128 is not a multiple of device_batch_size=3"),
        ("device_batch_size=0", "device_batch_size=0 must be at least 1"),
        ("evaluation.enabled=true", "need a simulator: choose one, e.g. sim=metaworld"),
        ("collect.enabled=true", "need a simulator: choose one, e.g. sim=metaworld"),
        ("schedule.warmup=3", "schedule.warmup='3' is not a duration"),
        ("schedule.warmup=6 epoch", "schedule.warmup=6 epoch is longer than schedule.total=5 epoch"),
        ("trainer.save_every=1 epok", "trainer.save_every='1 epok' is not a duration. Did you mean 'epoch'?"),
    ],
)
def test_values_that_do_not_fit_together_are_refused_with_the_option_to_change(value: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        completed(composed(), value)


def test_a_view_the_data_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="'wrist', which the data config does not map"):
        completed(composed("data=bridge"))
    with pytest.raises(ValueError, match=re.escape("data.shift names ['top']")):
        completed(composed("+data.shift.top=3"))
    assert completed(composed("data=bridge"), "view.views=[side]").view.views == ["side"]


def test_a_config_is_plain_dataclasses_below_the_entry_points() -> None:
    def check(value: object) -> None:
        module = type(value).__module__.split(".")
        assert module[:2] in (["robovlms", "config"], ["builtins"]) or {"schema", "schemas"} & set(module)
        for part in fields(value) if is_dataclass(value) else ():
            check(getattr(value, part.name))

    check(completed(composed("experiment=quickstart")))
