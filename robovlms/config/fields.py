"""Fields that say more than their type: the range of a number, the placeholder of a template, and what depends on them.

Everything is declared where the field is, and one walk over a config checks it all before anything heavy is imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from string import Formatter
from typing import Any

from robovlms.config.choices import MISSING, Duration, Unit
from robovlms.errors import UserError

MAX_PROCESSES = 1024  # of one kind on one machine
MAX_PORT = 65535
LARGEST = 2**31 - 1  # of whole numbers: random generators and 32-bit indices end here

# What a change of a field leaves as it is; a field without such a mark changes all of it.
RUN = "run"  # a run may be resumed with another value
READING = "reading"  # what a reader gives, so that a packed copy stays valid
NUMBERS = "numbers"  # the actions and proprioception that statistics are made of
DEMO = "demo"  # a single demonstration of a collection


@dataclass(frozen=True, kw_only=True)
class Range:
    """The finite numbers that a field may hold; every bound that is set is one of it."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __contains__(self, value: float | int) -> bool:
        if isinstance(value, int) and abs(value) > LARGEST:
            return False
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return " and ".join(f"{name} {bound:g}" for name, bound in bounds.items() if bound is not None) or "finite"


def marked(default: Any = MISSING, *, keeps: str = "", **metadata: Any) -> Any:
    """Declare a field; `keeps` names, with blanks between, what a change of its value leaves as it is."""
    metadata["keeps"] = frozenset(keeps.split())
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def ask(example: str, *, keeps: str = "") -> Any:
    """Declare a value that only the user knows; the error that asks for it shows `example`."""
    return marked(MISSING, keeps=keeps, example=example)


def number(
    default: Any = MISSING,
    *,
    hint: str = "",
    example: str = "",
    unless: tuple[str, str] | None = None,
    keeps: str = "",
    **bounds: float | int,
) -> Any:
    """Declare a number, a list or dict of numbers, or a duration, with its range; null, where allowed, is outside it.

    Args:
        default: a value, or what makes one.
        hint: added to the error, for what a value outside probably meant.
        example: shown where the value must be given.
        unless: (field beside it, value): where that has this value, nobody is asked, and it is null.
        keeps: see `marked`.
        bounds: of `Range`.
    """
    allowed = Range(**{name: float(bound) for name, bound in bounds.items()})
    return marked(default, keeps=keeps, range=allowed, hint=hint, example=example, unless=unless)


def template(default: str, placeholder: str) -> Any:
    """Declare a text with one `{placeholder}`."""
    return marked(default, placeholder=placeholder)


def check_divides(part: int, part_name: str, whole: int, whole_name: str) -> None:
    """Refuse a width that its attention heads do not divide."""
    if whole % part:
        raise UserError(f"{whole_name}={whole} must be a multiple of {part_name}={part}.")


class Checked:
    """A whole config: its fields are checked when it is made, then every part's `check(option)`, of its bases first."""

    def __post_init__(self) -> None:
        check_fields(self)


def check_fields(config: Any, place: str = "") -> None:
    """Check every field of a config and of what is in it, then whether its values go together.

    Args:
        config: a dataclass.
        place: its dotted key, "" for a whole config.

    Raises:
        UserError: names every option that is out of range, with the value given and the range; or what does not go
            together.
    """
    parts = list(_parts(config, place))
    wrong = [fault for part, where in parts for fault in _faults(part, where)]
    if wrong:
        raise UserError("\n".join(wrong))
    for part, where in reversed(parts):  # a part before the whole
        for cls in reversed(type(part).__mro__):  # what holds for a group holds for its options
            if "check" in vars(cls):
                vars(cls)["check"](part, where)


def _parts(config: Any, place: str) -> Iterator[tuple[Any, str]]:
    """Return a dataclass and all dataclasses in it, each with its dotted place."""
    yield config, place
    for item in fields(config):
        value, option = getattr(config, item.name), _join(place, item.name)
        for inner, where in _items(value, option):
            if is_dataclass(inner):
                yield from _parts(inner, where)


def _items(value: Any, option: str) -> list[tuple[Any, str]]:
    """Return a value, or those of a list or dict, each with its dotted place."""
    if isinstance(value, dict):
        return [(inner, f"{option}.{key}") for key, inner in value.items()]
    if isinstance(value, list):
        return [(inner, f"{option}[{index}]") for index, inner in enumerate(value)]
    return [(value, option)]


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _faults(part: Any, place: str) -> Iterator[str]:
    for item in fields(part):
        allowed, placeholder = item.metadata.get("range"), item.metadata.get("placeholder")
        for value, option in _items(getattr(part, item.name), _join(place, item.name)):
            if allowed is not None and value is not None:
                yield from _outside(value, option, allowed, item.metadata["hint"])
            elif placeholder is not None:
                yield from _wrong_template(value, option, placeholder)


def _outside(value: float | int | str, option: str, allowed: Range, hint: str) -> Iterator[str]:
    """Say that a number, or the number of a duration, is outside its range."""
    amount = value
    if isinstance(value, str):
        duration = Duration.parse(value, option)
        amount = duration.amount
        if duration.unit is Unit.step and math.isfinite(amount) and amount != round(amount):
            yield f"{option}={value} must be a whole number of steps."
            return
    assert not isinstance(amount, str)
    if amount not in allowed:
        limit = f"{allowed} and at most {LARGEST}" if type(value) is int and abs(value) > LARGEST else str(allowed)
        yield f"{option}={value} must be {limit}{': ' + hint if hint else ''}."


def _wrong_template(text: str, option: str, placeholder: str) -> Iterator[str]:
    """Say that a template has not its one placeholder, or more than that."""
    wanted = f"{option}={text!r} must contain {{{placeholder}}} once, and no other placeholder"
    try:
        found = [(name, spec, convert) for _, name, spec, convert in Formatter().parse(text) if name is not None]
    except ValueError as error:
        yield f"{wanted} ({error}; write {{{{ and }}}} for braces)."
        return
    if found != [(placeholder, "", None)]:
        yield f"{wanted}."


def fields_that_keep(config: Any, what: str) -> set[str]:
    """Name the fields of a dataclass whose change leaves `what` as it is."""
    return {item.name for item in fields(config) if what in item.metadata.get("keeps", ())}


def change_keeps(config: Any, key: str, what: str) -> bool:
    """Tell whether a change of the dotted `key` of a config leaves `what` as it is; of what is not known, it does not.

    The field itself or any that it is in may say so.
    """
    for name in key.split("."):
        if isinstance(config, dict):
            config = config.get(name)
            continue
        if not is_dataclass(config):
            return False
        if name in fields_that_keep(config, what):
            return True
        config = getattr(config, name, None)
    return False
