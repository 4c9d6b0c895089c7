"""One job of a command, alone or in a sweep: what it is called, and how it ended.

A job of a sweep may run in another process or on another machine (joblib, submitit), so that it is a value that can be
pickled, and what became of it is one, too.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING as DEFAULTLESS
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple

from robovlms.cli.output import report, set_up_output
from robovlms.config.choices import MISSING
from robovlms.errors import NotAllowedError, UserError

log = logging.getLogger(__name__)
MAX_NAME = 100  # characters of a job's folder, its number and what varies
QUOTES = "[]{}'\""
SAME_RUN = {"output_dir", "trainer.resume", "trainer.overwrite"}  # do not make another run


class Outcome(NamedTuple):
    """What became of a job: its folder, its exit status and, where it failed, why."""

    folder: str
    status: int
    reason: str = ""


@dataclass(frozen=True)
class Job:
    """A command with all that a process needs to run it with a composed config."""

    config_name: str
    schema: type
    main: Callable[[Any], None]
    swept: frozenset[str] = frozenset()  # keys that the command line gives several values
    # that option files ask and the command line does not answer, by the option's name, then by key
    questions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __call__(self, config: Any) -> Outcome:
        """Run it; an error is reported, not raised."""
        set_up_output()
        folder = ""
        try:
            folder = own_folder(config, self.swept)
            self.main(to_dataclass(config, self.schema, self._asked()))
        except Exception as error:
            if isinstance(error, NotAllowedError) and is_multirun():
                log.warning("skipped: %s", error)
                return Outcome(folder, 0)
            return Outcome(folder, *report(error, self.schema))
        return Outcome(folder, 0)

    def _asked(self) -> dict[str, str]:
        """Return what is asked by the option files of this job; a sweep's jobs have different ones."""
        from hydra.core.hydra_config import HydraConfig

        chosen = set(HydraConfig.get().runtime.choices.values()) if is_multirun() else set(self.questions)
        return {key: text for name in self.questions if name in chosen for key, text in self.questions[name].items()}


def summary(outcomes: list[Outcome]) -> str:
    """Say which jobs of a sweep failed, and why; "" when none did."""
    failed = [outcome for outcome in outcomes if outcome.status]
    if not failed:
        return ""
    lines = [f"{len(failed)} of {len(outcomes)} jobs failed:"]
    return "\n".join([*lines, *(f"  {job.folder}: {job.reason.splitlines()[0]}" for job in failed)]) + "\n"


def is_multirun() -> bool:
    """Tell whether this job is one of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def own_folder(config: Any, swept: frozenset[str]) -> str:
    """Return the folder of a job; one of a sweep gets one of its own inside `output_dir`."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    if "output_dir" not in config or OmegaConf.is_missing(config, "output_dir") or config.output_dir is None:
        return f"job {HydraConfig.get().job.num}" if is_multirun() else ""
    if is_multirun():
        hydra = HydraConfig.get()
        name = job_name(int(hydra.job.num), list(hydra.overrides.task), swept | set(hydra.sweeper.params or {}))
        OmegaConf.update(config, "output_dir", f"{config.output_dir}/{name}")
    return str(config.output_dir)


def to_dataclass(config: Any, schema: type, questions: Mapping[str, str] | None = None) -> Any:
    """Turn a composed config into its dataclass.

    Args:
        config: as Hydra composed it.
        schema: the dataclass.
        questions: that files of the user's ask (`option_files`), by key: where each stands, and what it asks. Of a key
            that has a default, Hydra takes the default for `???`.

    Raises:
        UserError: values that are still `???`, all of them, each with an example; or a failed check of the schema.
    """
    from omegaconf import OmegaConf

    _check_keys(config, schema)
    for key in OmegaConf.missing_keys(config):
        if _is_needless(config, key):
            OmegaConf.update(config, key, None)
    unanswered = {key for key in questions or () if OmegaConf.select(config, key) == _default(config, key)}
    if missing := sorted(OmegaConf.missing_keys(config) | unanswered):
        examples = [f"{key}={_example(config, key)}" for key in missing]
        asked = [f"\n  {key}: {questions[key]}" for key in missing if questions and key in questions]
        where = "there, or on the command line" if asked else "on the command line"
        raise UserError(f"{', '.join(missing)}: not set. Say {where}, e.g. {' '.join(examples)}{''.join(asked)}")
    result = OmegaConf.to_object(config)
    assert isinstance(result, schema)
    return result


def _check_keys(config: Any, schema: type, prefix: str = "") -> None:
    """Refuse keys that no schema has: `+optimizer.lrr=1` gets past Hydra. And groups that were left out: `~data`."""
    from omegaconf import OmegaConf

    from robovlms.cli.errors import left_out, unknown_option

    known = {field.name for field in fields(OmegaConf.get_type(config))}  # type: ignore[arg-type]
    for key in config:
        if key not in known:
            raise UserError(unknown_option(f"{prefix}{key}", schema))
        if OmegaConf.is_missing(config, key):
            if prefix == "" and is_dataclass(_declared(schema, str(key))):
                raise UserError(left_out(str(key)))
            continue
        if is_dataclass(OmegaConf.get_type(config, key)):
            _check_keys(config[key], schema, f"{prefix}{key}.")
        elif OmegaConf.is_dict(config[key]):  # sources by name
            for name in config[key]:
                if is_dataclass(OmegaConf.get_type(config[key], name)):
                    _check_keys(config[key][name], schema, f"{prefix}{key}.{name}.")
    if absent := sorted(known - set(config)):
        raise UserError(left_out(f"{prefix}{absent[0]}"))


def _declared(schema: type, name: str) -> Any:
    from typing import get_type_hints

    return get_type_hints(schema)[name]


def _example(config: Any, key: str) -> str:
    """Return what the schema suggests for a mandatory value."""
    return str(_note(config, key, "example") or "<value>")


def _is_needless(config: Any, key: str) -> bool:
    """Tell whether another option makes a mandatory value meaningless."""
    from omegaconf import OmegaConf

    name, value = _note(config, key, "unless") or (None, None)
    parent = OmegaConf.select(config, key.rpartition(".")[0])
    return name is not None and not OmegaConf.is_missing(parent, name) and str(parent[name]) == value


def _default(config: Any, key: str) -> Any:
    """Return a field's default; MISSING where the schema has none."""
    item = _field(config, key)
    if item is None:
        return MISSING
    return item.default_factory() if item.default_factory is not DEFAULTLESS else item.default


def _note(config: Any, key: str, name: str) -> Any:
    """Return what the schema notes of a field."""
    item = _field(config, key)
    return None if item is None else item.metadata.get(name)


def _field(config: Any, key: str) -> Field[Any] | None:
    """Return the field that a key is of; None of a name that is the user's own, as in `data.views`."""
    from omegaconf import OmegaConf

    parent, _, leaf = key.rpartition(".")
    owner = OmegaConf.get_type(OmegaConf.select(config, parent) if parent else config)
    return next((item for item in fields(owner) if item.name == leaf), None) if is_dataclass(owner) else None


def swept_keys(overrides: list[str]) -> frozenset[str]:
    """Return the keys that a command line gives several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(overrides)
    return frozenset(item.key_or_group for item in parsed if item.is_sweep_override())


def job_name(number: int, overrides: list[str], swept: set[str] | frozenset[str]) -> str:
    """Name a job by what varies, e.g. `0_lr-2e-05`, or where nothing does, by all that it was given.

    Commands take such a name as it is: it has neither `=` nor `,`.
    """
    items = [override.lstrip("+~").partition("=") for override in overrides]
    shown = [item for item in items if item[0] in swept] or [item for item in items if item[0] not in SAME_RUN]
    text = "_".join(f"{key.rpartition('.')[2]}-{value.strip(QUOTES)}" for key, _, value in shown)
    name = re.sub(r"[^\w.+-]+", "-", f"{number}_{text}").rstrip("_-")
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 9]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
