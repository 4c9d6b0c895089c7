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

from robovlms.actions.contract import GRIPPER, check_contract, policy_contract, position_entries
from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.statistics import Statistics
from robovlms.config.choices import Rotation
from robovlms.config.data import ActionContract, DataConfig, MixtureDataConfig
from robovlms.errors import UserError
from robovlms.registry import nearest

ABOUT = {"rx": "roll", "ry": "pitch", "rz": "yaw"}  # two words for a turn about an axis


@dataclass(frozen=True, kw_only=True)
class Source:
    """One data set, and where its entries stand in the policy's."""

    number: int
    name: str
    data: DataConfig
    contract: ActionContract  # what its actions mean to the policy
    action_dims: list[int]  # of its contract's names
    proprio: list[int]  # of the proprioception it lets the policy see


def sources_of(data: DataConfig) -> list[Source]:
    """Return the parts, in the order of their numbers.

    Raises:
        UserError: a mixture without parts; parts whose actions disagree while `data.agree` is true; an entry that the
            mixture does not have.
    """
    if not isinstance(data, MixtureDataConfig):
        contract = policy_contract(data)
        whole = list(range(len(contract.names)))
        return [
            Source(
                number=0,
                name=data.name,
                data=data,
                contract=contract,
                action_dims=whole,
                proprio=list(range(len(data.seen_names))),
            )
        ]
    if not data.sources:
        raise UserError(
            "data=mixture has no sources: add some, e.g. +data@data.sources.mine=lerobot "
            "data.sources.mine.root=/path/to/it."
        )
    return [_source(number, name, source, data) for number, (name, source) in enumerate(data.sources.items())]


def _source(number: int, name: str, source: DataConfig, mixture: MixtureDataConfig) -> Source:
    try:
        contract = policy_contract(source)
    except ValueError as error:
        raise UserError(f"data.sources.{name}: {error}") from error
    names = policy_names(mixture)
    action_dims = _places(
        _along(contract.names, names, mixture), names, f"data.sources.{name}.contract.names", "data.contract.names"
    )
    proprio = _places(
        source.seen_names, mixture.proprio_names, f"data.sources.{name}.proprio_names", "data.proprio_names"
    )
    if mixture.agree:
        if mixture.contract.control_hz > source.contract.control_hz:
            raise UserError(
                f"data.contract.control_hz={mixture.contract.control_hz:g} is above the {source.contract.control_hz:g} "
                f"that data.sources.{name} is recorded at: set it to the slowest source's, and convert.control_hz of "
                "the others. Or set data.agree=false: then every part keeps its own meaning."
            )
        try:
            check_contract(contract, _as_far_as(contract, mixture.contract), "the mixture")
        except ValueError as error:
            told = str(error).replace("data.convert", f"data.sources.{name}.convert")
            raise UserError(
                f"data.sources.{name}: {told.replace('data.contract', f'data.sources.{name}.contract')} Or set "
                "data.agree=false: then every part keeps its own meaning, and evaluation must name the part."
            ) from error
    return Source(number=number, name=name, data=source, contract=contract, action_dims=action_dims, proprio=proprio)


def _as_far_as(source: ActionContract, whole: ActionContract) -> ActionContract:
    """Return the mixture's contract as far as a part has entries that it is about."""
    same: dict[str, Any] = {"names": source.names}
    if source.rotation is Rotation.none:
        same |= {"rotation": Rotation.none, "rotation_unit": source.rotation_unit}
    if not position_entries(source.names):
        same["position_unit"] = source.position_unit
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
            raise UserError(
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
    lost = {name: Path(source.root).expanduser() for name, source in data.sources.items()}
    lost = {name: path for name, path in lost.items() if not path.exists()}
    if not lost:
        return
    lines = [f"  {name}: {path}{_sibling(path)}" for name, path in lost.items()]
    without = " ".join(f"'~data.sources.{name}'" for name in lost)
    raise FileNotFoundError(
        f"{len(lost)} of {len(data.sources)} data sets are not there (data.root={data.root}):\n"
        + "\n".join(lines)
        + "\n"
        "Say where they are, with data.root=<the folder that holds them> or data.sources.<name>.root=..., or omit: "
        + without
    )


def _sibling(path: Path) -> str:
    folders = [other.name for other in path.parent.iterdir() if other.is_dir()] if path.parent.is_dir() else []
    return nearest(path.name, folders)


@contextmanager
def naming(source: Source, data: DataConfig) -> Iterator[None]:
    """Say in an error which part of a mixture it is about."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if not isinstance(data, MixtureDataConfig):
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else UserError
        raise kind(f"data.sources.{source.name}: {error}") from error


def find_source(data: DataConfig, name: str | None) -> Source:
    """Return a part by name; the only one needs none.

    Raises:
        UserError: there are several and none is named, or there is none of that name.
    """
    sources = {source.name: source for source in sources_of(data)}
    if name is None and len(sources) == 1:
        return next(iter(sources.values()))
    if name not in sources:
        raise UserError(
            f"evaluation.source={name}: the policy was trained on several data sets, and each has its own statistics. "
            f"Choose one of {', '.join(sources)}."
        )
    return sources[name]


def policy_names(data: DataConfig) -> list[str]:
    """Name the entries of the policy's actions, the gripper last."""
    if not isinstance(data, MixtureDataConfig):
        return policy_contract(data).names
    return [*(name for name in data.contract.names if name != GRIPPER), GRIPPER]


def make_normalizers(data: DataConfig, statistics: dict[str, Statistics]) -> list[ActionNormalizer]:
    """Return each part's normaliser of the policy's action entries, by the part's number.

    Raises:
        UserError: the statistics are of other parts.
    """
    names, sources = policy_names(data), sources_of(data)
    if missing := [source.name for source in sources if source.name not in statistics]:
        raise UserError(f"no statistics of {', '.join(missing)}; there are those of {', '.join(statistics)}.")
    return [
        ActionNormalizer(
            source.data.normalization, statistics[source.name].scatter(source.action_dims, len(names)), names
        )
        for source in sources
    ]
