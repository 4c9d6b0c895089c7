"""What every command shares: from the command line to one typed config, and from an exception to a message that helps.

Nothing heavy is imported before a config has been checked, so that `--help`, `--cfg job` and every misspelling answer
within a second; Hydra itself is imported when it is needed.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from robovlms.config.presets import config_folder, options
from robovlms.config.schemas import SCHEMAS
from robovlms.errors import NotAllowedError, UserError
from robovlms.terminal import PrintableFormatter, printable

T = TypeVar("T")


def entry(config_name: str, schema: type[T], main: Callable[[T], None]) -> None:
    """Run `main` with the config that the command line composes, then leave the process.

    Under `--multirun` one job follows another in this process, each with its own `output_dir`
    (`<output_dir>/<number>_<what was varied>`); a job that fails does not keep the next from running.

    Args:
        config_name: file in `configs/`, whose head is the `--help` page.
        schema: dataclass that the config is converted to; its `__post_init__` checks run before `main`.
        main: the job. It imports what is heavy itself.

    Exit status: 0; 2 when the user can fix it (message on stderr); 1 with a traceback when the program is at fault;
    130 when interrupted. ROBOVLMS_TRACEBACK=1 shows the traceback of every error.
    """
    statuses = [0]

    def job(config: Any) -> None:
        try:
            main(to_dataclass(config, schema))
        except Exception as error:
            if isinstance(error, NotAllowedError) and is_multirun():
                logging.getLogger(__name__).warning("skipped: %s", error)
                return
            statuses.append(report(error, config_name))

    try:
        _set_up_logging()
        if {"--help", "-h"} & set(sys.argv[1:]):
            sys.stdout.write(help_page(config_name))
        else:
            _run_hydra(config_name, job)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        statuses.append(130)
    except Exception as error:
        statuses.append(report(error, config_name))
    sys.exit(max(statuses))


def _run_hydra(config_name: str, job: Callable[[Any], None]) -> None:
    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach `entry` instead of being printed by Hydra
    store_schemas()
    if not [argument for argument in sys.argv[1:] if argument.startswith("-")]:
        config = _compose(config_name)
        if config is not None:
            job(config)
            return
    if re.search(r"(--cfg|-c)[ =]job\b", " ".join(sys.argv)):
        sys.argv.append("--resolve")  # print values, not where they come from
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=config_name)(job)()


def _compose(config_name: str) -> Any:
    """Compose a plain command line once, Hydra's own way does it twice; None: the config asks for a sweep."""
    from hydra import compose, initialize_config_dir
    from hydra.types import RunMode
    from omegaconf import open_dict

    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose(config_name, sys.argv[1:], return_hydra_config=True)
    if config.hydra.mode is RunMode.MULTIRUN:
        return None
    with open_dict(config):
        del config["hydra"]
    return config


def store_schemas() -> None:
    """Make the dataclasses of `SCHEMAS` known to Hydra as `/schema/<place>`, for YAML files to pull in."""
    from hydra.core.config_store import ConfigStore

    for place, schema in SCHEMAS.items():
        group, _, name = f"schema/{place}".rpartition("/")
        ConfigStore.instance().store(group=group, name=name, node=schema)


def is_multirun() -> bool:
    """Tell whether this job is one of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def to_dataclass(config: Any, schema: type[T]) -> T:
    """Turn a composed config into its dataclass; a job of a sweep gets a folder of its own inside `output_dir`.

    Raises:
        UserError: values that are still `???`, all of them, each with an example; or a failed check of the schema.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    _check_keys(config, schema)
    for key in OmegaConf.missing_keys(config):
        if _is_needless(config, key):
            OmegaConf.update(config, key, None)
    if missing := sorted(OmegaConf.missing_keys(config)):
        examples = [f"{key}={_example(config, key)}" for key in missing]
        raise UserError(f"{', '.join(missing)}: not set. Say on the command line, e.g. {' '.join(examples)}")
    if is_multirun():
        hydra = HydraConfig.get()
        job = f"{hydra.job.num}_{_short(list(hydra.overrides.task), set(hydra.sweeper.params or {}))}".rstrip("_")
        OmegaConf.update(config, "output_dir", f"{config.output_dir}/{job}")
    result = OmegaConf.to_object(config)
    assert isinstance(result, schema)
    return result


def _check_keys(config: Any, schema: type, prefix: str = "") -> None:
    """Refuse keys that no schema has: `+optimizer.lrr=1` gets past Hydra."""
    from omegaconf import OmegaConf

    known = {field.name for field in fields(OmegaConf.get_type(config))}  # type: ignore[arg-type]
    for key in config:
        if key not in known:
            from robovlms.cli.errors import unknown_option

            raise UserError(unknown_option(f"{prefix}{key}", schema))
        if OmegaConf.is_missing(config, key):
            continue
        if is_dataclass(OmegaConf.get_type(config, key)):
            _check_keys(config[key], schema, f"{prefix}{key}.")
        elif OmegaConf.is_dict(config[key]):  # parts by name
            for name in config[key]:
                if is_dataclass(OmegaConf.get_type(config[key], name)):
                    _check_keys(config[key][name], schema, f"{prefix}{key}.{name}.")


def _example(config: Any, key: str) -> str:
    """Return what the schema suggests for a mandatory value."""
    return str(_note(config, key, "example") or "<value>")


def _is_needless(config: Any, key: str) -> bool:
    """Tell whether another option makes a mandatory value meaningless."""
    from omegaconf import OmegaConf

    name, value = _note(config, key, "unless") or (None, None)
    parent = OmegaConf.select(config, key.rpartition(".")[0])
    return name is not None and not OmegaConf.is_missing(parent, name) and str(parent[name]) == value


def _note(config: Any, key: str, name: str) -> Any:
    """Return what the schema notes of a field."""
    from omegaconf import OmegaConf

    parent, _, leaf = key.rpartition(".")
    owner = OmegaConf.get_type(OmegaConf.select(config, parent) if parent else config)
    found = [field.metadata.get(name) for field in fields(owner) if field.name == leaf]  # type: ignore[arg-type]
    return found[0] if found else None


def _short(overrides: list[str], swept: set[str]) -> str:
    """Name a job by what varies, e.g. `lr=2e-05`: the keys that a sweep or the command line gives several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = [argument for argument in sys.argv[1:] if "=" in argument and not argument.startswith("-")]
    swept = swept | {
        item.key_or_group for item in OverridesParser.create().parse_overrides(given) if item.is_sweep_override()
    }
    items = [override.lstrip("+").partition("=") for override in overrides]
    text = ",".join(f"{key.rpartition('.')[2]}={value}" for key, _, value in items if key in swept)
    return re.sub(r"[^\w.,=+-]+", "-", text)[:100]


def _set_up_logging() -> None:
    """Log INFO from the first process of a launch and WARNING from the others, on stderr."""
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler])


def help_page(config_name: str) -> str:
    """Compose the `--help` page: the head of the config file, its groups with options, its presets with titles."""
    import yaml  # type: ignore[import-untyped]

    folder = config_folder()
    file = folder / f"{config_name}.yaml"
    defaults = [item for item in yaml.safe_load(file.read_text())["defaults"] if isinstance(item, dict)]
    groups = {
        group: chosen for item in defaults for group, chosen in item.items() if " " not in group
    }  # not `optional x`
    lines = [*_head(file), "", "Groups (group=option; * is the default):"]
    for group in sorted(set(groups) - {"experiment"}):
        names = [f"{name}*" if name == groups[group] else name for name in options(group)]
        lines += textwrap.wrap(" ".join(names), 116, initial_indent=f"  {group:<12}", subsequent_indent=" " * 14)
    if "experiment" in groups:
        lines += ["", "Presets (experiment=preset):"]
        for name in options("experiment"):
            title = next(iter(_head(folder / "experiment" / f"{name}.yaml")), "")
            lines.append(f"  {name:<29}{title}")
    lines += ["", "Hydra's own flags: --hydra-help. Tracebacks of all errors: ROBOVLMS_TRACEBACK=1."]
    return "\n".join(lines) + "\n"


def _head(file: Path) -> list[str]:
    """Return the comment lines a YAML file begins with, without Hydra's `# @package` line."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("# @")]
    count = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.removeprefix("#").removeprefix(" ") for line in lines[:count]]


def report(error: Exception, config_name: str) -> int:
    """Say on stderr what went wrong, and give the exit status: 2 for what the user can fix, 1 for the rest.

    The module that knows the words of Hydra's errors is imported here, when there is an error.
    """
    from robovlms.cli.errors import explain

    message = explain(error, SCHEMAS[config_name])
    if message is None or os.environ.get("ROBOVLMS_TRACEBACK") == "1":
        import traceback

        sys.stderr.write(printable("".join(traceback.format_exception(error))))
    if message is not None:
        sys.stderr.write(printable(f"error: {message}\n"))
    return 1 if message is None else 2
