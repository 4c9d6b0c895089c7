"""The command line that composes a training config: which options, and what differs from them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from robovlms.cli.arguments import literal
from robovlms.config.presets import config_folder, groups, options
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError

MISSING, PLACE = "???", "/path/to/it"
OWN = {"output_dir"}  # where a run goes is not what it is


def command_of(config: TrainConfig) -> str | None:
    """Return a command that trains a run again, with `PLACE` where the config names none; None: no command line does.

    What it composes is compared with the config before it is returned.
    """
    wanted = _plain(config)
    chosen = [f"{group}={name}" for group, name in _options(wanted)]
    try:
        changes = list(_differences(wanted, _composed(chosen), ""))
        again = _composed([*chosen, *changes])
    except (UserError, ValueError):
        return None
    if list(_differences(wanted, again, "")):
        return None
    return shlex.join(["robovlms-train", *chosen, *changes])


def _plain(config: TrainConfig) -> dict[str, Any]:
    from omegaconf import OmegaConf, SCMode

    plain: Any = OmegaConf.to_container(
        OmegaConf.structured(config), enum_to_str=True, structured_config_mode=SCMode.DICT
    )
    return {key: value for key, value in plain.items() if key not in OWN}


def _options(wanted: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the options whose names a config says; of groups that are named otherwise, the differences say it."""
    for group, value in wanted.items():
        if group in groups() and isinstance(value, dict) and value.get("name") in options(group):
            yield group, value["name"]


def _composed(overrides: list[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from robovlms.cli.app import store_schemas

    store_schemas()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = compose("train", overrides)
    except HydraException as error:
        raise UserError(str(error)) from error
    OmegaConf.resolve(config)
    found: Any = OmegaConf.to_container(config, enum_to_str=True)
    return {key: value for key, value in found.items() if key not in OWN}


def _differences(wanted: dict[str, Any], found: dict[str, Any], place: str) -> Iterator[str]:
    """Yield the overrides that make of what is found what is wanted."""
    for key in wanted | found:
        value, was = wanted.get(key), found.get(key, MISSING)
        if isinstance(value, dict) and isinstance(was, dict) and value:
            yield from _differences(value, was, f"{place}{key}.")
        elif key not in wanted:
            yield f"~{place}{key}"
        elif value == "" and was in (MISSING, PLACE, ""):
            if was == MISSING:
                yield f"{place}{key}={PLACE}"
        elif value != was:
            yield f"{'' if key in found else '+'}{place}{key}={literal(value)}"
