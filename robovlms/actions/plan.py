"""What a run's data is made of, worked out once: its sources, what their actions mean, where their entries stand.

A mixture's action and proprioception are the union; a source's entries are found there by name. Where sources keep
their own meaning (`data.agree=false`), what moves along or turns about the same axis is the same entry: dx and x, droll
and drx.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robovlms.actions.contract import (
    check_contract,
    check_names,
    converted_contract,
    has_positions,
    split_name,
)
from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.relative import RelativeEntry, relative_entries, relative_names
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
    config: DataConfig
    views: list[str]  # of the policy's cameras, those that it has
    contract: ActionContract  # what its actions mean to the policy
    action_dims: list[int]  # of the policy's action, those that its contract names
    proprio_dims: list[int]  # of the policy's proprioception, those that it records
    # what an observation brings: what stands at `proprio_dims`, then what actions are relative to and no policy sees
    proprio_names: list[str]
    relative: Sequence[RelativeEntry] = ()  # entries of its contract that are learned relative to the state

    @classmethod
    def of(cls, data: DataConfig, views: list[str] | None = None) -> Source:
        """Describe a data set that a policy is trained on alone, through all its cameras or those of `views`.

        Raises:
            UserError: the contract contradicts itself, or the conversion is not possible.
        """
        contract = converted_contract(data)
        proprio_names = _asked_names(data, contract)
        return cls(
            number=0,
            name=data.name,
            config=data,
            views=list(data.views) if views is None else _known(views, data),
            contract=contract,
            action_dims=list(range(len(contract.names))),
            proprio_dims=list(range(len(data.seen_names))),
            proprio_names=proprio_names,
            relative=relative_entries(data, contract, proprio_names),
        )

    @property
    def seen_names(self) -> list[str]:
        """Name the proprioception that the policy sees."""
        return self.proprio_names[: len(self.proprio_dims)]


def find_source(
    sources: Sequence[Source], name: str | None, taken: ActionContract | None = None, *, option: str = "source"
) -> Source:
    """Return a source by name; the only one needs none, nor does the only one whose actions are those `taken`.

    Args:
        sources: of a policy.
        name: of one of them.
        taken: what a simulator's actions mean.
        option: that names it, for messages.

    Raises:
        UserError: there are several and none is named, or there is none of that name.
    """
    by_name = {source.name: source for source in sources}
    possible = [source for source in sources if len(sources) == 1 or source.contract == taken]
    if name is None and len(possible) == 1:
        return possible[0]
    if name in by_name:
        return by_name[name]
    if len(sources) == 1:
        raise UserError(f"{option}={name}: the policy was trained on one data set, {sources[0].name}; omit it.")
    raise UserError(
        f"{option}={name}: the policy was trained on several data sets, and each has its own statistics. "
        f"Choose one of {', '.join(by_name)}.{nearest(name or '', by_name)}"
    )


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """The sources of a run's data in the order of their numbers, and what the policy's entries are called."""

    config: DataConfig
    sources: list[Source]
    action_names: list[str]
    binary: list[int]  # of these, the grippers that are open or closed
    proprio_names: list[str]

    @classmethod
    def of(cls, data: DataConfig, views: list[str]) -> DataPlan:
        """Work the plan of a data config out, for a policy that looks through `views`.

        Raises:
            UserError: a mixture without sources; sources whose actions disagree while `data.agree` is true; an entry
                that the mixture does not have; a source that has none of the views.
        """
        sources = _mixed(data, views) if isinstance(data, MixtureDataConfig) else [Source.of(data, views)]
        for source in sources:
            if not source.views:
                raise UserError(f"{source.name} has none of view.views={views}: map one in its views.")
        contract = data.contract if isinstance(data, MixtureDataConfig) else sources[0].contract
        return cls(
            config=data,
            sources=sources,
            action_names=contract.names,
            binary=contract.binary,
            proprio_names=data.seen_names,
        )

    @property
    def is_mixture(self) -> bool:
        """Tell whether samples of several sources may meet in a batch."""
        return isinstance(self.config, MixtureDataConfig)

    def find(
        self, name: str | None, taken: ActionContract | None = None, *, option: str = "evaluation.source"
    ) -> Source:
        """Return a source as `find_source` does.

        Raises:
            UserError: there are several and none is named, or there is none of that name.
        """
        return find_source(self.sources, name, taken, option=option)

    def normalizers(self, statistics: dict[str, Statistics]) -> list[ActionNormalizer]:
        """Return each source's normaliser of the policy's action entries, by the source's number.

        Raises:
            UserError: the statistics are of other sources.
        """
        names = self.action_names
        if missing := [source.name for source in self.sources if source.name not in statistics]:
            raise UserError(f"no statistics of {', '.join(missing)}; there are those of {', '.join(statistics)}.")
        return [
            ActionNormalizer(
                source.config.normalization,
                statistics[source.name].scatter(source.action_dims, len(names)),
                names,
                self.binary,
                [replace(entry, action=source.action_dims[entry.action]) for entry in source.relative],
            )
            for source in self.sources
        ]

    def check_roots(self) -> None:
        """Refuse a mixture some of whose sources lie nowhere; names all of them at once.

        Raises:
            FileNotFoundError: says where each was looked for, and how to go without it.
        """
        if isinstance(self.config, MixtureDataConfig):
            check_roots(self.config)

    @contextmanager
    def naming(self, source: Source) -> Iterator[None]:
        """Say in an error which source of a mixture it is about."""
        try:
            yield
        except (UserError, FileNotFoundError) as error:
            if not self.is_mixture:
                raise
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else UserError
            raise kind(f"data.sources.{source.name}: {error}") from error


def _known(views: list[str], data: DataConfig) -> list[str]:
    return [view for view in views if view in data.views]


def _mixed(data: MixtureDataConfig, views: list[str]) -> list[Source]:
    if not data.sources:
        raise UserError(
            "data=mixture has no sources: add some, e.g. +data@data.sources.mine=lerobot "
            "data.sources.mine.root=/path/to/it."
        )
    check_names(data.contract)
    sources = [_source(number, name, each, data, views) for number, (name, each) in enumerate(data.sources.items())]
    _check_grippers(sources, data)
    return sources


def _check_grippers(sources: Sequence[Source], mixture: MixtureDataConfig) -> None:
    """Refuse a gripper that is open or closed to some and an opening width to others, whatever else may differ."""
    kinds: dict[str, dict[bool, str]] = {}
    for source in sources:
        continuous = source.contract.continuous_grippers
        for i in source.contract.grippers:
            called = mixture.contract.names[source.action_dims[i]]
            where = f"data.sources.{source.name}.contract.continuous_grippers"
            kinds.setdefault(called, {}).setdefault(source.contract.names[i] in continuous, where)
    for name, kind in kinds.items():
        kind.setdefault(name in mixture.contract.continuous_grippers, "data.contract.continuous_grippers")
        if len(kind) > 1:
            raise UserError(
                f"'{name}' is an opening width by {kind[True]}, and open or closed by {kind[False]}, which lacks it: "
                "leave it out of the first, so that it is open or closed to all; add it to the second, if it is a "
                f"width there; or call it otherwise in one of them and in data.contract.names, e.g. width/{name}."
            )


def _source(number: int, name: str, source: DataConfig, mixture: MixtureDataConfig, views: list[str]) -> Source:
    try:
        contract = converted_contract(source)
        proprio_names = _asked_names(source, contract)
        relative = relative_entries(source, contract, proprio_names)
    except UserError as error:
        raise UserError(f"data.sources.{name}: {error}") from error
    names = mixture.contract.names
    action_dims = _places(
        _along(contract.names, names, mixture), names, f"data.sources.{name}.contract.names", "data.contract.names"
    )
    proprio_dims = _places(
        source.seen_names, mixture.proprio_names, f"data.sources.{name}.proprio_names", "data.proprio_names"
    )
    if mixture.agree:
        if mixture.contract.control_hz > source.contract.control_hz:
            raise UserError(
                f"data.contract.control_hz={mixture.contract.control_hz:g} is above the {source.contract.control_hz:g} "
                f"that data.sources.{name} is recorded at: set it to the slowest source's, and convert.control_hz of "
                "the others. Or set data.agree=false: then every source keeps its own meaning."
            )
        try:
            check_contract(contract, _as_far_as(contract, mixture.contract), "the mixture")
        except UserError as error:
            told = str(error).replace("data.convert", f"data.sources.{name}.convert")
            raise UserError(
                f"data.sources.{name}: {told.replace('data.contract', f'data.sources.{name}.contract')} Or set "
                "data.agree=false: then every source keeps its own meaning, and evaluation must name the source."
            ) from error
    return Source(
        number=number,
        name=name,
        config=source,
        views=_known(views, source),
        contract=contract,
        action_dims=action_dims,
        proprio_dims=proprio_dims,
        proprio_names=proprio_names,
        relative=relative,
    )


def _asked_names(data: DataConfig, contract: ActionContract) -> list[str]:
    """Name the proprioception that an observation brings: what the policy sees, then what actions are relative to."""
    return list(dict.fromkeys([*data.seen_names, *relative_names(data, contract)]))


def _as_far_as(source: ActionContract, whole: ActionContract) -> ActionContract:
    """Return the mixture's contract as far as a source has entries that it is about."""
    same: dict[str, Any] = {"names": source.names, "continuous_grippers": source.continuous_grippers}
    if source.rotation is Rotation.none:
        same |= {"rotation": Rotation.none, "rotation_unit": source.rotation_unit}
    if not has_positions(source.names):
        same["position_unit"] = source.position_unit
    return replace(whole, **same)


def _along(names: list[str], whole: list[str], mixture: MixtureDataConfig) -> list[str]:
    """Call entries as the mixture does where it has one about the same axis, and sources keep their own meaning."""
    if mixture.agree:
        return names
    known = {_axis(name): name for name in whole}
    called = [name if name in whole else known.get(_axis(name), name) for name in names]
    return called if len(set(called)) == len(called) else names


def _axis(name: str) -> str:
    arm, bare = split_name(name)
    return arm + ABOUT.get(bare, bare)


def _places(names: list[str], whole: list[str], option: str, target: str) -> list[int]:
    for name in names:
        if name not in whole:
            raise UserError(
                f"{option} has '{name}', which {target}={whole} lacks.{nearest(name, whole)} Add it there, or convert "
                "or leave out what is recorded."
            )
    return [whole.index(name) for name in names]


def check_roots(data: MixtureDataConfig) -> None:
    """Refuse a mixture some of whose sources lie nowhere; names all of them at once.

    Raises:
        FileNotFoundError: says where each was looked for, and how to go without it.
    """
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
