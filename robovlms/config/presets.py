"""Where the YAML files lie, and what options a group has."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from robovlms.registry import entry_points


def config_folder() -> Path:
    """Return our own `configs/`: of the installed package, or of the checkout that it is run from.

    Raises:
        FileNotFoundError: there is none.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"{package / 'configs'} does not exist: this installation lacks the presets. Install it again with "
        "`pip install .` in a clone of the repository."
    )


@cache
def config_folders() -> tuple[Path, ...]:
    """Return our own `configs/`, then the folders that installed packages bring.

    A package names one as entry point of the group `robovlms.configs`, dotted like a module: `my_robot.configs`.
    """
    found = [config_folder()]
    for point in entry_points("robovlms.configs"):
        spec = find_spec(point.module)
        found += [Path(place) for place in (spec and spec.submodule_search_locations) or []]
    return tuple(found)


def groups() -> list[str]:
    """List the config groups."""
    return sorted({path.name for folder in config_folders() for path in folder.iterdir() if path.is_dir()})


def options(group: str) -> list[str]:
    """List the options of a config group."""
    return sorted({path.stem for folder in config_folders() for path in (folder / group).glob("*.yaml")})
