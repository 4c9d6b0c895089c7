"""What our own presets know: whole data sets by their name, and the joints of robots by theirs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from robovlms.config.presets import config_folder, options


def preset_of(name: str) -> str | None:
    """Return the option of `data=` whose head says that it is for the TFDS folder of this name; None: there is none."""
    for option in options("data"):
        head = _text(option).partition("defaults:")[0]
        if re.search(rf"TFDS folder (\w+ or )?{re.escape(name)}\b", head):
            return option
    return None


def filled_in(option: str, root: Path, said: str) -> str:
    """Return a preset's text with `root`, under a head that says why it is this one."""
    text = _text(option)
    place = f"root: {quoted(str(root))}"
    if re.search(r"^root: .*$", text, re.MULTILINE):
        text = re.sub(r"^root: .*$", lambda _: place, text, count=1, flags=re.MULTILINE)
    else:
        text = re.sub(r"^( +- _self_\n)", lambda match: f"{match[1]}\n{place}\n", text, count=1, flags=re.MULTILINE)
    return f"# {said}\n# What follows is the preset data={option} of robovlms, with the folder filled in.\n{text}"


def contract_of_preset(option: str, width: int) -> dict[str, Any] | None:
    """Return the contract of a preset where it has as many entries as `width`."""
    import yaml  # type: ignore[import-untyped]

    content: Any = yaml.safe_load(_text(option))
    contract = content.get("contract") if isinstance(content, dict) else None
    if not isinstance(contract, dict) or not isinstance(contract.get("names"), list):
        return None
    return contract if len(contract["names"]) == width else None


def preset_of_robot(robot: str | None, width: int) -> tuple[str, dict[str, Any]] | None:
    """Return the preset that is named after a robot with so many entries, and its contract; None where none fits.

    `so101_follower`, `Unitree_G1` and `SO101` are all found: letters and digits count, case does not.
    """
    told = _bare(robot or "")
    fitting = [option for option in options("data") if told.startswith(_bare(option.removesuffix("_joint")))]
    for option in sorted(fitting, key=len, reverse=True):
        if told and (contract := contract_of_preset(option, width)):
            return option, contract
    return None


def quoted(text: str) -> str:
    """Return a text as a YAML scalar on one line."""
    is_plain = re.fullmatch(r"[\w/]([\w/. +-]*[\w/.+-])?", text)
    if is_plain and not re.fullmatch(r"[\d.e+-]+|true|false|null|yes|no|on|off", text.lower()):
        return text
    return "'" + text.replace("'", "''") + "'"


def _bare(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _text(option: str) -> str:
    return (config_folder() / "data" / f"{option}.yaml").read_text(encoding="utf-8")
