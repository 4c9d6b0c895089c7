"""Where the YAML files lie, and what options a group has."""

from __future__ import annotations

from pathlib import Path


def config_folder() -> Path:
    """Return the repository's `configs/`.

    Raises:
        FileNotFoundError: the package was installed without it.
    """
    folder = Path(__file__).resolve().parents[2] / "configs"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist: the presets are part of the repository, not of the installed package. "
            "Clone the repository and install it with `pip install -e .`."
        )
    return folder


def options(group: str) -> list[str]:
    """List the options of a config group."""
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
