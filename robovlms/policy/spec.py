"""What a policy sees, says and how often: one frozen value, written into every checkpoint as `spec.json`.

It is what a simulator, a robot or a client is held against before anything moves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from robovlms.actions.contract import check_contract
from robovlms.actions.plan import DataPlan, Source
from robovlms.actions.statistics import Statistics
from robovlms.config.choices import ReferenceFrame, Representation, Rotation
from robovlms.config.data import ActionContract
from robovlms.config.policy import WindowConfig
from robovlms.errors import UserError

SPEC = "spec.json"
VERSION = 1  # of the file's layout
_CONTRACT: dict[str, type] = {
    "names": list,
    "representation": Representation,
    "frame": ReferenceFrame,
    "rotation": Rotation,
    "position_unit": float,
    "rotation_unit": float,
    "gripper_closed": float,
    "gripper_open": float,
    "continuous_grippers": list,
    "control_hz": float,
}


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """What holds for the actions of one source; a policy of one data set has one."""

    contract: ActionContract
    proprio_names: list[str]  # what an observation's proprioception holds, in this order
    statistics: str  # SHA-256 of the action statistics that undo the normalisation


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """What a policy sees, says and how often."""

    name: str  # of the run
    views: dict[str, int]  # cameras by our names, and the side in px that their pictures are resized to
    window_size: int  # frames that it remembers
    chunk_size: int  # actions that it predicts at once
    sources: dict[str, SourceSpec]

    @classmethod
    def of(
        cls, plan: DataPlan, window: WindowConfig, views: dict[str, int], statistics: dict[str, Statistics], name: str
    ) -> PolicySpec:
        """Describe a policy that was trained by a plan."""
        return cls(
            name=name,
            views=views,
            window_size=window.window_size,
            chunk_size=window.chunk_size,
            sources={source.name: _source_spec(source, statistics[source.name]) for source in plan.sources},
        )

    @property
    def control_hz(self) -> dict[str, float]:
        """Actions a second, by source."""
        return {name: source.contract.control_hz for name, source in self.sources.items()}

    def find(self, source: str | None) -> SourceSpec:
        """Return what holds for a source; the only one needs no name.

        Raises:
            UserError: there are several and none is named, or there is none of that name.
        """
        if source is None and len(self.sources) == 1:
            return next(iter(self.sources.values()))
        if source not in self.sources:
            raise UserError(
                f"source={source}: this policy has the sources {', '.join(self.sources)}: name one of them."
            )
        return self.sources[source]

    def check_environment(
        self,
        contract: ActionContract,
        name: str,
        source: str | None = None,
        *,
        views: Sequence[str] | None = None,
        proprio_names: Sequence[str] = (),
    ) -> None:
        """Refuse an environment whose actions mean something else, or that shows less than the policy needs.

        Args:
            contract: of the environment's actions.
            name: of the environment, for messages.
            source: of a mixture, the one whose actions are wanted.
            views: that the environment has; None: not known.
            proprio_names: entries of its proprioception.

        Raises:
            UserError: lists both sides of every disagreement, and what converts the data.
        """
        chosen = self.find(source)
        check_contract(chosen.contract, contract, name)
        if views is not None:
            check_observations(list(self.views), chosen.proprio_names, views, proprio_names, name)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"version": VERSION, **asdict(self)}

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> PolicySpec:
        """Read what `save` wrote.

        Raises:
            UserError: the file is damaged, or of another version; names it.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is damaged: {type(error).__name__}: {error}") from error
        return cls.from_json(values, str(path))

    @classmethod
    def from_json(cls, values: Any, name: str) -> PolicySpec:
        """Read what `to_json` returned; `name` is where it is from, for messages.

        Raises:
            UserError: it is damaged, or of another version.
        """
        try:
            values = dict(values)
            if values.pop("version") != VERSION:
                raise UserError(f"{name} was written by another version of robovlms.")
            values["sources"] = {source: _read_source(each) for source, each in values["sources"].items()}
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{name} is damaged: {type(error).__name__}: {error}") from error


def check_observations(
    needed: Sequence[str], needed_proprio: Sequence[str], views: Sequence[str], proprio_names: Sequence[str], name: str
) -> None:
    """Refuse an environment that shows less than a policy needs.

    Raises:
        UserError: names what is missing, and what there is.
    """
    if missing := [view for view in needed if view not in views]:
        raise UserError(
            f"the policy sees {', '.join(needed)}; {name} has no {', '.join(missing)}, only {', '.join(views)}."
        )
    if missing := [entry for entry in needed_proprio if entry not in proprio_names]:
        raise UserError(
            f"the policy needs the proprioception {', '.join(needed_proprio)}; {name} has no {', '.join(missing)}, "
            f"only {', '.join(proprio_names) or 'none at all'}."
        )


def _source_spec(source: Source, statistics: Statistics) -> SourceSpec:
    text = json.dumps(asdict(statistics), sort_keys=True)
    return SourceSpec(
        contract=source.contract,
        proprio_names=list(source.proprio_names),
        statistics=hashlib.sha256(text.encode()).hexdigest(),
    )


def _read_source(values: dict[str, Any]) -> SourceSpec:
    return SourceSpec(**{**values, "contract": ActionContract(**read_contract(values["contract"], "contract"))})


def read_contract(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return fields of an action contract, all or some, from JSON values.

    Raises:
        UserError: there is no such field, or it may not be that; says which, and what may be.
    """
    for key in values:
        if key not in _CONTRACT:
            raise UserError(f"{name}: {key} is no field of an action contract: {', '.join(_CONTRACT)}.")
    return {key: _read_field(key, value, name) for key, value in values.items()}


def _read_field(key: str, value: Any, name: str) -> Any:
    kind = _CONTRACT[key]
    if issubclass(kind, StrEnum):
        if value in list(kind):
            return kind(value)
        raise UserError(f"{name}: {key}={value!r:.80} must be one of {', '.join(kind)}.")
    if kind is list:
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return value
        raise UserError(f"{name}: {key}={value!r:.80} must be a list of names.")
    if value is None and key in ("position_unit", "rotation_unit"):  # not known
        return None
    if isinstance(value, float | int) and not isinstance(value, bool) and abs(value) < 2**63:
        return float(value)
    raise UserError(f"{name}: {key}={value!r:.80} must be a number.")
