"""The `--help` page of a command, made of its config file's head and of the presets there are."""

from __future__ import annotations

import textwrap
from pathlib import Path

from robovlms.config.presets import config_folder, config_folders, options


def help_page(config_name: str) -> str:
    """Return the head of the config file, its groups with options, and its presets with titles."""
    import yaml  # type: ignore[import-untyped]

    file = config_folder() / f"{config_name}.yaml"
    text = file.read_text(encoding="utf-8")
    defaults = [item for item in yaml.safe_load(text)["defaults"] if isinstance(item, dict)]
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
            lines.append(f"  {name:<29}{_title(name)}".rstrip())
    lines += ["", "Hydra's own flags: --hydra-help. Tracebacks of all errors: ROBOVLMS_TRACEBACK=1."]
    return "\n".join(lines) + "\n"


def _title(preset: str) -> str:
    files = [folder / "experiment" / f"{preset}.yaml" for folder in config_folders()]
    return next(iter(_head(next(file for file in files if file.is_file()))), "")


def _head(file: Path) -> list[str]:
    """Return the comment lines a YAML file begins with, without Hydra's `# @package` line."""
    text = file.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("# @")]
    count = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.removeprefix("#").removeprefix(" ") for line in lines[:count]]
