"""What must not be published with a checkpoint: places of this machine are emptied, secrets are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from robovlms.errors import UserError

T = TypeVar("T")

PLACES = {"output_dir", "root", "init_from", "resume", "cache_dir", "file", "image_folder", "statistics_file",
          "few_shot_file"}  # fields that name a place of this machine, however it is written  # fmt: skip
NAMES = re.compile(r"_key$|^instruction$|^prompt$")  # fields whose text may look like a path, and is none
JSON_NAMES = re.compile(r"(path|dir|file|root|folder|checkpoint)s?$")
HOME = re.compile(r"(?:/home|/Users|[A-Za-z]:\\{1,2}Users)[/\\]+[\w.-]+")
SECRETS = {
    "a token of the Hugging Face Hub": r"\bhf_[A-Za-z0-9]{30,}",
    "a token of GitHub": r"\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_\w{50,}",
    "a token of GitLab": r"\bglpat-[\w-]{20}",
    "a key of OpenAI's form": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a key of AWS": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a token of Slack": r"\bxox[abprs]-[\w-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"://[^/\s:@\"']+:[^/\s@\"']+@",
    "a password or key": r"(?i)\b(?:wandb_)?(?:api_?key|secret|password|access_token|auth_token)\W{1,4}[\w-]{16,}",
}


def is_place(value: object) -> bool:
    """Tell whether a text is a path of this machine; an id of the Hub, `owner/name`, is none unless it exists here."""
    if not isinstance(value, str) or not value:
        return False
    if re.match(r"(/|~|\.{1,2}([/\\]|$)|[A-Za-z]:[/\\]|\\\\|file:)", value):
        return True
    return "/" in value and len(value) < 4096 and Path(value).exists()


def without_places(config: T, option: str = "") -> tuple[T, dict[str, str]]:
    """Return a config whose places of this machine have their defaults, or are empty, and what was there, by option."""
    changes: dict[str, Any] = {}
    removed: dict[str, str] = {}
    for item in fields(config):  # type: ignore[arg-type]
        value, where = getattr(config, item.name), f"{option}.{item.name}" if option else item.name
        if is_dataclass(value):
            changes[item.name], inner = without_places(value, where)
            removed |= inner
        elif isinstance(value, dict) and any(is_dataclass(each) for each in value.values()):
            pairs = {key: without_places(each, f"{where}.{key}") for key, each in value.items()}
            changes[item.name] = {key: each for key, (each, _) in pairs.items()}
            removed |= {key: was for _, inner in pairs.values() for key, was in inner.items()}
        elif isinstance(value, list) and any(is_place(each) for each in value):
            changes[item.name] = [each for each in value if not is_place(each)]
            removed[where] = ", ".join(each for each in value if is_place(each))
        elif isinstance(value, str) and (empty := _emptied(item, value)) != value:
            changes[item.name], removed[where] = empty, value
    return replace(config, **changes), removed  # type: ignore[type-var]


def _emptied(item: Field[Any], value: str) -> str | None:
    if item.name not in PLACES and (NAMES.search(item.name) or not is_place(value)):
        return value
    if item.default is MISSING or item.default == "???" or is_place(item.default):
        return ""
    default: str | None = item.default
    return default


def without_json_places(path: Path) -> list[str]:
    """Empty the paths of this machine in a JSON file, such as `_name_or_path` of transformers; return their keys."""
    content = json.loads(path.read_text(encoding="utf-8"))
    removed: list[str] = []
    changed = _cleared(content, "", removed)
    if removed:
        path.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return removed


def _cleared(value: Any, key: str, removed: list[str]) -> Any:
    if isinstance(value, dict):
        return {name: _cleared(each, name, removed) for name, each in value.items()}
    if isinstance(value, list):
        return [_cleared(each, key, removed) for each in value]
    if JSON_NAMES.search(key) and is_place(value):
        removed.append(key)
        return ""
    return value


def check_private(files: Mapping[str, Path], places: Mapping[str, str]) -> None:
    """Refuse files in which there still is what must not be published.

    Args:
        files: text files, by their names in the repository.
        places: of this machine, by what each is, that must not occur.

    Raises:
        UserError: names the files and lines, and what is there; secrets are not repeated.
    """
    faults = [fault for name, path in files.items() for fault in _faults(name, path, places)]
    if faults:
        raise UserError(
            "the checkpoint is not published, since it would tell what is private:\n  "
            + "\n  ".join(faults)
            + "\nRemove it from these files; if a secret has been published before, revoke it."
        )


def _faults(name: str, path: Path, places: Mapping[str, str]) -> Iterator[str]:
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        for what, pattern in SECRETS.items():
            if re.search(pattern, line):
                yield f"{name}, line {number}: {what}"
        if match := HOME.search(line):
            yield f"{name}, line {number}: a home folder, {match[0]}"
        for what, place in places.items():
            if re.search(rf"(?<![\w/.-]){re.escape(place)}(?![\w-])", line):
                yield f"{name}, line {number}: {what}, {place}"
