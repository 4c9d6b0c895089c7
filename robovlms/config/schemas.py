"""The schemas of all configs, by the place YAML files pull them in from: `/schema/head/flow`.

A schema registers itself with `@schema("head/flow")`, beside its option: in a module `schemas/<option>.py` of its room,
in a module `schema.py` of its folder, or in one that an installed package names as entry point of the group
`robovlms.schemas`. An option without fields of its own has its group's `base`. No such module imports torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

from robovlms.registry import entry_points

T = TypeVar("T", bound=type)

_SCHEMAS: dict[str, type] = {}
OURS = ("run", "commands")  # modules of this folder; they import the others


def schema(place: str) -> Callable[[T], T]:
    """Decorate the dataclass that types an option, e.g. `head/flow`."""

    def decorate(cls: T) -> T:
        if place in _SCHEMAS:
            raise ValueError(f"two schemas of {place}: {_SCHEMAS[place]} and {cls}")
        _SCHEMAS[place] = cls
        return cls

    return decorate


@cache
def schemas() -> dict[str, type]:
    """Return the schemas of all commands and options, by place."""
    package = Path(__file__).parents[1]
    for name in OURS:
        importlib.import_module(f"robovlms.config.{name}")
    for path in sorted([*package.glob("*/schemas/*.py"), *package.glob("*/*/schema.py")]):
        importlib.import_module(".".join(path.relative_to(package.parent).with_suffix("").parts))
    for point in entry_points("robovlms.schemas"):
        importlib.import_module(point.module)
    return dict(sorted(_SCHEMAS.items()))


def schema_of(group: str, option: str) -> type:
    """Return the schema of an option: its own, or its group's."""
    return schemas().get(f"{group}/{option}") or schemas()[f"{group}/base"]
