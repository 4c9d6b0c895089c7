"""Ranges, templates and what depends on a field are declared where the field is; one walk checks them all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest
from composing import completed, composed

from robovlms.config.choices import Duration
from robovlms.config.commands import CollectDemosConfig, CompareConfig, EvaluateConfig, InspectConfig
from robovlms.config.data import DataConfig
from robovlms.config.fields import DEMO, NUMBERS, READING, RUN, change_keeps, fields_that_keep
from robovlms.config.presets import options
from robovlms.config.schemas import schemas
from robovlms.errors import UserError

NUMBERS_IN = {int, float}


def classes(schema: type) -> Iterator[type]:
    """Return a schema and the dataclasses in it."""
    yield schema
    for hint in get_type_hints(schema).values():
        for part in (hint, *get_args(hint)):
            if is_dataclass(part):
                yield from classes(part)  # type: ignore[arg-type]


ALL = sorted({cls for schema in schemas().values() for cls in classes(schema)}, key=lambda cls: cls.__name__)


def numeric(cls: type) -> list[Field[Any]]:
    hints = get_type_hints(cls)
    return [item for item in fields(cls) if {hints[item.name], *get_args(hints[item.name])} & NUMBERS_IN]


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_number_declares_its_range(cls: type) -> None:
    assert [item.name for item in numeric(cls) if "range" not in item.metadata] == []


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_ranges_are_checked_by_the_walk_alone(cls: type) -> None:
    assert "__post_init__" not in vars(cls)


VALUES = [
    "seed=-1", "seed=5000000000", "batch_size=0", "device_batch_size=-4", "window.window_size=0",
    "window.chunk_size=-1", "optimizer.lr=0", "optimizer.lr=-1", "optimizer.lr=1e38",
    "optimizer.lr=inf", "optimizer.lr=nan",
    "optimizer.betas=[0.9,1.0]", "optimizer.betas=[-0.1,0.9]", "optimizer.betas=[0.9,nan]", "optimizer.betas=[0.9]",
    "optimizer.eps=0", "optimizer.eps=-1e-8", "optimizer.weight_decay=-0.1", "optimizer.weight_decay=inf",
    "optimizer.max_grad_norm=0", "optimizer.max_grad_norm=-1", "optimizer.max_grad_norm=inf",
    "schedule.min_lr_ratio=2", "schedule.min_lr_ratio=-0.1", "schedule.total=0 step", "schedule.total=-5 step",
    "schedule.total=1e999 step", "schedule.total=nan epoch", "schedule.warmup=-1 epoch", "schedule.total=1.5 step",
    "schedule.warmup=6 epoch", "trainer.log_every=0 step", "trainer.save_every=0 epoch",
    "trainer.validate_every=0 step", "trainer.keep_last=0", "trainer.keep_last=-1", "trainer.num_threads=0",
    "trainer.max_validation_batches=0",
    "trainer.max_validation_batches=-3", "cluster.num_processes=-1", "parallel.bucket_cap_mb=0",
    "head.gripper_weight=-1", "head.gripper_weight=nan", "head.hidden_dim=0", "head.num_layers=0", "head.dropout=1",
    "head.dropout=-0.1", "head.num_queries=0", "head.arm_weights=[1,-1]", "backbone.max_text_tokens=0",
    "backbone.lora.rank=-1", "backbone.lora.alpha=0", "backbone.lora.dropout=1.0", "backbone.resample=0",
    "backbone.train_text_layers=0", "data.num_workers=-1", "data.num_workers=100000", "data.cache_mb=-1",
    "data.fraction=0", "data.fraction=1.1", "data.weight=0", "data.weight=inf", "data.contract.control_hz=0",
    "data.contract.control_hz=inf", "data.contract.position_unit=0", "data.contract.position_unit=-1",
    "data.contract.rotation_unit=nan", "data.contract.gripper_open=nan", "data.convert.control_hz=-1",
    "data.normalization.low=0.65", "data.normalization.low=nan", "data.normalization.mu=-1", "data.shift.side=-1",
    "data.augmentation.hue=0.6", "data.augmentation.brightness=-0.1", "data.augmentation.largest_crop=0",
    "collect.demos_per_task=0", "collect.noise=-1", "collect.num_workers=0", "collect.max_start_steps=-1",
    "evaluation.language_episodes=0", "evaluation.num_workers=0", "evaluation.execute_steps=0",
    "evaluation.videos_per_task=-1",
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_a_number_out_of_range_is_named_with_its_option_its_value_and_what_is_allowed(value: str) -> None:
    with pytest.raises(UserError, match=r"must be|is longer") as caught:
        completed(composed(), value)
    assert str(caught.value).startswith(value.partition("=")[0])


def test_all_numbers_out_of_range_are_named_at_once() -> None:
    told = "seed=-1 must be at least 0.\noptimizer.lr=-1.0 must be above 0 and at most 1."
    with pytest.raises(UserError, match=f"^{re.escape(told)}$"):
        completed(composed(), "seed=-1", "optimizer.lr=-1")


def test_what_a_wrong_number_probably_meant_is_said() -> None:
    with pytest.raises(ValueError, match="null turns clipping off"):
        completed(composed(), "optimizer.max_grad_norm=0")
    assert completed(composed(), "optimizer.max_grad_norm=null").optimizer.max_grad_norm is None


def test_a_source_of_a_mixture_is_named() -> None:
    with pytest.raises(ValueError, match=r"^data\.sources\.bridge\.weight=-2\.0 must be above 0"):
        completed(composed("data=oxe", "view=side"), "data.sources.bridge.weight=-2")


@pytest.mark.parametrize(
    ("schema", "name", "value"),
    [
        (EvaluateConfig, "evaluate", "evaluation.execute_steps=-1"),
        (CollectDemosConfig, "collect_demos", "sim.control_hz=0"),
        (CollectDemosConfig, "collect_demos", "sim.seed=-1"),
        (CollectDemosConfig, "collect_demos", "sim.episodes=0"),
        (InspectConfig, "inspect_data", "outlier_iqr=0"),
        (CompareConfig, "compare", "latency_steps=-1"),
    ],
)
def test_the_other_commands_check_their_numbers_too(schema: type, name: str, value: str) -> None:
    config = composed(config_name=name)
    if name == "compare":
        config.folders = ["runs"]
    with pytest.raises(ValueError, match=rf"^{value.partition('=')[0]}="):
        completed(config, value, schema=schema)


@pytest.mark.parametrize(("heads", "dim", "given"), [("gpt", 30, 4), ("flow", 36, 4), ("diffusion", 30, 2)])
def test_attention_heads_that_do_not_divide_the_width_are_refused_before_anything_is_built(
    heads: str, dim: int, given: int
) -> None:
    structure = "policy_head" if heads == "gpt" else "one_step"
    chosen = composed(f"head={heads}", f"structure={structure}", "window=w1_c10")
    with pytest.raises(ValueError, match=rf"head\.hidden_dim.*={dim} must be a multiple of .*head\.num_heads"):
        completed(chosen, f"head.hidden_dim={dim}", f"head.num_heads={given}")
    with pytest.raises(ValueError, match=r"head\.num_heads=0 must be at least 1"):
        completed(chosen, "head.num_heads=0")


def test_an_epoch_is_not_an_exponent() -> None:
    assert Duration.parse("1epoch") == Duration.parse("1 epoch")
    assert Duration.parse("1e3 step") == Duration.parse("1000 step")


@pytest.mark.parametrize(
    "prompt",
    ["do it", "do {task} now", "{instruction} and {instruction}", "{instruction:>3000000000}", "{instruction!r}", "{}",
     "{instruction.__class__}", "{instruction", "{instruction} }", "{instruction} {0}"],
)  # fmt: skip
def test_a_prompt_has_its_instruction_once_and_nothing_else(prompt: str) -> None:
    config = composed()
    config.backbone.prompt = prompt
    with pytest.raises(ValueError, match=r"^backbone\.prompt=.* must contain \{instruction\} once"):
        completed(config)


@pytest.mark.parametrize(("key", "text"), [("question", "Q: {text} {text}"), ("answer", "{instruction}")])
def test_conversations_have_their_text_once(key: str, text: str) -> None:
    config = composed("cotrain=vl")
    config.cotrain[key] = text
    with pytest.raises(ValueError, match=rf"^cotrain\.{key}=.* must contain \{{text\}} once"):
        completed(config)


def test_braces_that_are_doubled_are_text() -> None:
    config = composed()
    config.backbone.prompt = "{{robot}} {instruction}"
    assert completed(config).backbone.prompt == "{{robot}} {instruction}"


def test_what_a_change_of_a_field_leaves_as_it_is_is_told_by_the_field() -> None:
    config = completed(composed("data=oxe", "view=side"))
    where = {"root", "num_workers", "cache_mb", "cache", "cache_dir"}
    assert fields_that_keep(DataConfig, RUN) == where
    assert fields_that_keep(DataConfig, NUMBERS) == where | {
        "views", "normalization", "shift", "augmentation", "resize", "fit", "weight",
    }  # fmt: skip
    assert fields_that_keep(DataConfig, READING) == fields_that_keep(DataConfig, NUMBERS) | {
        "contract", "convert", "proprio_rotation", "proprio_seen", "episodes", "fraction",
    }  # fmt: skip
    assert fields_that_keep(config.collect, DEMO) >= {"demos_per_task", "video"}
    free = ["optimizer.lr", "trainer.resume", "schedule.total", "data.root", "data.sources.bridge.num_workers", "name"]
    fixed = ["head.hidden_dim", "seed", "batch_size", "data.sources.bridge.fraction", "data.nobody", "nobody", "data"]
    assert [key for key in [*free, *fixed] if change_keeps(config, key, RUN)] == free


@pytest.mark.parametrize("cls", [cls for cls in ALL if issubclass(cls, DataConfig)], ids=lambda cls: cls.__name__)
def test_a_data_set_that_declares_a_field_anew_says_what_depends_on_it_anew(cls: type) -> None:
    base = {item.name: item.metadata.get("keeps", frozenset()) for item in fields(DataConfig)}
    own = {item.name: item.metadata.get("keeps", frozenset()) for item in fields(cls)}
    assert {name: own[name] for name in base} == base


@pytest.mark.parametrize("backbone", options("backbone"))
def test_what_a_group_refuses_every_option_of_it_refuses(backbone: str) -> None:
    with pytest.raises(UserError, match=r"backbone.checkpointing=half does not exist: write none, attention, full"):
        completed(composed(f"backbone={backbone}"), "backbone.checkpointing=half")


def test_a_base_that_refuses_is_asked_though_its_option_refuses_more() -> None:
    with pytest.raises(UserError, match="num_heads"):
        completed(composed("backbone=nano", "head=diffusion"), "head.hidden_dim=30", "head.num_heads=4")
