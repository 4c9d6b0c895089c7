"""The official evaluation: a thousand chains of five tasks, each from an initial condition of the scene.

Source: github.com/mees/calvin (MIT license), calvin_agent/evaluation/multistep_sequences.py. `chains.json` is what its
`get_sequences(1000)` returns, which takes minutes to draw.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

COLOURS = ("red", "blue", "pink")


class Condition(NamedTuple):
    """Where a scene starts, in the order and with the values that the benchmark's seeds depend on."""

    led: int  # 1: on
    lightbulb: int
    slider: str  # "left" or "right"
    drawer: str  # "open" or "closed"
    red_block: str  # "table", "slider_left" or "slider_right"
    blue_block: str
    pink_block: str
    grasped: int = 0

    def block(self, colour: str) -> str:
        """Return where a block lies."""
        return str(self._asdict()[f"{colour}_block"])


class Chain(NamedTuple):
    """One official episode."""

    condition: Condition
    tasks: tuple[str, ...]


@cache
def task_names() -> tuple[str, ...]:
    """Return the tasks that the chains are made of, by name."""
    return tuple(sorted({task for chain in load_chains() for task in chain.tasks}))


@cache
def load_chains() -> tuple[Chain, ...]:
    """Return the thousand chains in the official order."""
    stored = json.loads(Path(__file__).with_name("chains.json").read_text(encoding="utf-8"))
    conditions, names = [Condition(*values) for values in stored["conditions"]], stored["tasks"]
    return tuple(Chain(conditions[at], tuple(names[task] for task in tasks)) for at, *tasks in stored["chains"])


def starts(task: str) -> list[Condition]:
    """List the official initial conditions that allow a task, in the order of the chains; some tasks have none."""
    allows = _ALLOWED.get(task)
    conditions = dict.fromkeys(chain.condition for chain in load_chains())
    return [condition for condition in conditions if allows is not None and allows(condition)]


def _on_table(colour: str) -> Callable[[Condition], bool]:
    return lambda at: at.block(colour) == "table"


def _in_reach_in_the_cabinet(colour: str) -> Callable[[Condition], bool]:
    """Tell whether the sliding door does not cover the block."""
    return lambda at: (at.block(colour), at.slider) in {("slider_left", "right"), ("slider_right", "left")}


_ALLOWED: dict[str, Callable[[Condition], bool]] = {
    **{f"{verb}_{colour}_block_{side}": _on_table(colour)
       for verb in ("rotate", "push") for colour in COLOURS for side in ("right", "left")},
    **{f"lift_{colour}_block_table": _on_table(colour) for colour in COLOURS},
    **{f"lift_{colour}_block_slider": _in_reach_in_the_cabinet(colour) for colour in COLOURS},
    "move_slider_left": lambda at: at.slider == "right",
    "move_slider_right": lambda at: at.slider == "left",
    "open_drawer": lambda at: at.drawer == "closed",
    "close_drawer": lambda at: at.drawer == "open",
    "turn_on_lightbulb": lambda at: not at.lightbulb,
    "turn_off_lightbulb": lambda at: bool(at.lightbulb),
    "turn_on_led": lambda at: not at.led,
    "turn_off_led": lambda at: bool(at.led),
    "push_into_drawer": lambda at: at.drawer == "open" and [at.block(c) for c in COLOURS].count("table") == 1,
}  # fmt: skip
"""When a task can be a chain's first. The others begin with a block in the hand, in the drawer or on another block."""
