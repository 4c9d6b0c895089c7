"""What a policy's training data is made of: one data set, or the parts of a mixture, each in its own words.

A mixture's action and proprioception are the union; a part's entries are found there by name. Where parts keep their
own meaning (`data.agree=false`), what moves along or turns about the same axis is the same entry: dx and x, droll and
drx.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robovlms.actions import GRIPPER, ActionNormalizer, check_contract, policy_contract, position_entries
from robovlms.choices import Rotation
from robovlms.config import ActionContract, DataConfig, MixtureDataConfig
from robovlms.registry import nearest
from robovlms.statistics import Statistics

ABOUT = {"rx": "roll", "ry": "pitch", "rz": "yaw"}  # two words for a turn about an axis


@dataclass(frozen=True, kw_only=True)
class Part:
    """One data set, and where its entries stand in the policy's."""

    number: int
    name: str
    data: DataConfig
    contract: ActionContract  # what its actions mean to the policy
    entries: list[int]  # of its contract's names
    proprio: list[int]  # of the proprioception it lets the policy see


def parts_of(data: DataConfig) -> list[Part]:
    """Give the parts, in the order of their numbers.

    Raises:
        ValueError: a mixture without parts; parts whose actions disagree while `data.agree` is true; an entry that the
            mixture does not have.
    """
    if not isinstance(data, MixtureDataConfig):
        contract = policy_contract(data)
        whole = list(range(len(contract.names)))
        return [
            Part(
                number=0,
                name=data.name,
                data=data,
                contract=contract,
                entries=whole,
                proprio=list(range(len(data.seen_names))),
            )
        ]
    if not data.parts:
        raise ValueError(
            "data=mixture has no parts: add some, e.g. +data@data.parts.mine=lerobot data.parts.mine.root=/path/to/it."
        )
    return [_part(number, name, part, data) for number, (name, part) in enumerate(data.parts.items())]


def _part(number: int, name: str, part: DataConfig, mixture: MixtureDataConfig) -> Part:
    try:
        contract = policy_contract(part)
    except ValueError as error:
        raise ValueError(f"data.parts.{name}: {error}") from error
    names = policy_names(mixture)
    entries = _places(
        _along(contract.names, names, mixture), names, f"data.parts.{name}.contract.names", "data.contract.names"
    )
    proprio = _places(part.seen_names, mixture.proprio_names, f"data.parts.{name}.proprio_names", "data.proprio_names")
    if mixture.agree:
        if mixture.contract.control_hz > part.contract.control_hz:
            raise ValueError(
                f"data.contract.control_hz={mixture.contract.control_hz:g} is above the {part.contract.control_hz:g} "
                f"that data.parts.{name} is recorded at: set it to that of the slowest part, and convert.control_hz of "
                "the others. Or set data.agree=false: then every part keeps its own meaning."
            )
        try:
            check_contract(contract, _as_far_as(contract, mixture.contract), "the mixture")
        except ValueError as error:
            told = str(error).replace("data.convert", f"data.parts.{name}.convert")
            raise ValueError(
                f"data.parts.{name}: {told.replace('data.contract', f'data.parts.{name}.contract')} Or set "
                "data.agree=false: then every part keeps its own meaning, and evaluation must name the part."
            ) from error
    return Part(number=number, name=name, data=part, contract=contract, entries=entries, proprio=proprio)


def _as_far_as(part: ActionContract, whole: ActionContract) -> ActionContract:
    """Give the mixture's contract as far as a part has entries that it is about."""
    same: dict[str, Any] = {"names": part.names}
    if part.rotation is Rotation.none:
        same |= {"rotation": Rotation.none, "rotation_unit": part.rotation_unit}
    if not position_entries(part.names):
        same["position_unit"] = part.position_unit
    return replace(whole, **same)


def _along(names: list[str], whole: list[str], mixture: MixtureDataConfig) -> list[str]:
    """Call entries as the mixture does where it has one about the same axis, and parts keep their own meaning."""
    if mixture.agree:
        return names
    known = {_axis(name): name for name in whole}
    called = [name if name in whole else known.get(_axis(name), name) for name in names]
    return called if len(set(called)) == len(called) else names


def _axis(name: str) -> str:
    bare = name.removeprefix("d")
    return ABOUT.get(bare, bare)


def _places(names: list[str], whole: list[str], option: str, target: str) -> list[int]:
    for name in names:
        if name not in whole:
            raise ValueError(
                f"{option} has '{name}', which {target}={whole} lacks.{nearest(name, whole)} Add it there, or convert "
                "or leave out what is recorded."
            )
    return [whole.index(name) for name in names]


def check_roots(data: DataConfig) -> None:
    """Refuse a mixture some of whose parts lie nowhere; names all of them at once.

    Raises:
        FileNotFoundError: says where each was looked for, and how to go on without it.
    """
    if not isinstance(data, MixtureDataConfig):
        return
    lost = {name: Path(part.root).expanduser() for name, part in data.parts.items()}
    lost = {name: path for name, path in lost.items() if not path.exists()}
    if not lost:
        return
    lines = [f"  {name}: {path}{_sibling(path)}" for name, path in lost.items()]
    without = " ".join(f"'~data.parts.{name}'" for name in lost)
    raise FileNotFoundError(
        f"{len(lost)} of {len(data.parts)} data sets are not there (data.root={data.root}):\n" + "\n".join(lines) + "\n"
        "Say where they lie, with data.root=<the folder that holds them> or data.parts.<name>.root=..., or do without: "
        + without
    )


def _sibling(path: Path) -> str:
    folders = [other.name for other in path.parent.iterdir() if other.is_dir()] if path.parent.is_dir() else []
    return nearest(path.name, folders)


@contextmanager
def naming(part: Part, data: DataConfig) -> Iterator[None]:
    """Say in an error which part of a mixture it is about."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if not isinstance(data, MixtureDataConfig):
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"data.parts.{part.name}: {error}") from error


def find_part(data: DataConfig, name: str | None) -> Part:
    """Give a part by name; the only one needs none.

    Raises:
        ValueError: there are several and none is named, or there is none of that name.
    """
    parts = {part.name: part for part in parts_of(data)}
    if name is None and len(parts) == 1:
        return next(iter(parts.values()))
    if name not in parts:
        raise ValueError(
            f"evaluation.part={name}: the policy was trained on several data sets, and each has its own statistics. "
            f"Choose one of {', '.join(parts)}."
        )
    return parts[name]


def policy_names(data: DataConfig) -> list[str]:
    """Name the entries of the policy's actions, the gripper last."""
    if not isinstance(data, MixtureDataConfig):
        return policy_contract(data).names
    return [*(name for name in data.contract.names if name != GRIPPER), GRIPPER]


def make_normalizers(data: DataConfig, statistics: dict[str, Statistics]) -> list[ActionNormalizer]:
    """Give each part's normaliser of the policy's action entries, by the part's number.

    Raises:
        ValueError: the statistics are of other parts.
    """
    names, parts = policy_names(data), parts_of(data)
    if missing := [part.name for part in parts if part.name not in statistics]:
        raise ValueError(f"no statistics of {', '.join(missing)}; there are those of {', '.join(statistics)}.")
    return [
        ActionNormalizer(part.data.normalization, statistics[part.name].spread(part.entries, len(names)), names)
        for part in parts
    ]
