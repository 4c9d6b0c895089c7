"""The house rules that a test can hold: who imports whom, sizes and names of rooms, nobody writes to a config."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([ROOT / "train.py", *(ROOT / "robovlms").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])
MAX_LINES, MAX_STATEMENTS = 350, 50

# Who may import whom of ours: a module, or a whole package written `name/*`. A module may always import from its own
# package, but for the options in it (kosmos never sees llava). Change a line here together with the import it is about.
DOORS = {
    "__init__": "",
    "types": "",
    "registry": "",
    "choices": "registry",
    "config/*": "registry choices",
    "plots": "evaluation.results",  # for annotations only
    "actions": "choices config statistics",
    "statistics": "",
    "parts": "actions choices config registry statistics",
    "tracking": "choices config",
    "optimization": "choices config",
    "augmentation": "",
    "resizing": "types choices",
    "processor": "augmentation resizing types choices config backbones.base",
    "backbones/*": "registry types choices config",
    "heads/*": "registry types choices config backbones.base",
    "data/*": "registry types choices config actions parts processor statistics backbones.base",
    "sims/*": "registry types choices config",
    "policy": "registry types choices config parts processor backbones.base backbones.layout heads.base",
    "checkpoint": "choices config parts policy statistics backbones.lora",
    "run_folder": "config checkpoint",
    "memory": "types choices policy heads.base",
    "execution": "choices",
    "comparison": "types config checkpoint runner plots",
    "runner": "types choices config execution heads.base memory parts policy processor actions checkpoint",
    "validation": "types policy",
    "interval": "types",
    "trainer": "types choices config policy validation interval checkpoint run_folder parts statistics tracking "
    "optimization data.augmentation data.base data.loader data.sampler data.vl",
    "evaluation/*": "types config runner sims.base",
    "serving/*": "types config runner",
    "collect": "types config registry sims.base data.lerobot_writer",
    "build": "types config registry actions processor policy checkpoint run_folder runner trainer tracking plots "
    "collect parts statistics backbones.base heads.base data sims.base evaluation",
    "inspection": "actions config data.checks data.scan data.windows statistics",
    "inspection_text": "inspection",
    "inspection_index": "inspection",
    "inspection_episode": "data.base data.scan data.windows",
    "inspection_page": "inspection_episode",
    "contact_sheet": "data.base data.scan",
    "inspection_folder": "config contact_sheet data.windows inspection inspection_episode inspection_index "
    "inspection_page parts registry",
    "cli": "config cli_errors",
    "cli_errors": "cli registry",
    "train": "cli config build",
    "scripts/*": "cli config build collect checkpoint comparison backbones.conversion data.opening inspection_folder "
    "inspection_text",
}

# Who may import which library; the others are free.
LIBRARIES = {
    "hydra": "cli cli_errors",
    "omegaconf": "cli cli_errors checkpoint",
    "accelerate": "trainer tracking",
    "wandb": "tracking",
    "transformers": "backbones",
    "metaworld": "sims",
    "mujoco": "sims",
    "peft": "backbones",
    "diffusers": "heads",
    "gymnasium": "sims",
    "h5py": "data.hdf5_files",
}


def module(file: Path) -> str:
    """Give `data.calvin` for robovlms/data/calvin.py, `scripts.evaluate` for scripts/evaluate.py."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removeprefix("robovlms.")


def imports(file: Path) -> Iterator[str]:
    """Give what a file imports, at its top or inside functions: `robovlms.types`, `torch.nn.functional`."""
    for node in ast.walk(ast.parse(file.read_text())):
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
    file = ROOT / "robovlms" / (name.replace(".", "/") + ".py")
    return file.is_file() and f'.register("{file.stem}")' in file.read_text()


@pytest.mark.parametrize("file", FILES, ids=module)
def test_a_room_imports_only_through_its_doors(file: Path) -> None:
    name = module(file)
    package = name.partition(".")[0]
    doors = DOORS.get(name, DOORS.get(f"{package}/*"))
    assert doors is not None, f"{name} is a new room: write its doors into {__file__}"
    for imported in imports(file):
        room = imported.removeprefix("robovlms.")
        if not imported.startswith("robovlms.") or room == "__version__":
            continue
        is_sibling = "." in name and room.startswith(f"{package}.") and not is_option(room)
        assert is_sibling or within(room, doors), f"{name} may not import {room}"


@pytest.mark.parametrize("file", FILES, ids=module)
def test_a_library_stays_in_the_rooms_it_is_for(file: Path) -> None:
    for imported in imports(file):
        rooms = LIBRARIES.get(imported.partition(".")[0])
        assert rooms is None or within(module(file), rooms), f"{module(file)} may not import {imported}"


@pytest.mark.parametrize("file", FILES, ids=module)
def test_rooms_and_functions_stay_small(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = sum(isinstance(part, ast.stmt) for part in ast.walk(node)) - 1
            assert count <= MAX_STATEMENTS, f"{node.name} has {count} statements"


def test_a_room_is_called_by_what_it_holds() -> None:
    parts = {part for file in FILES for part in file.relative_to(ROOT).with_suffix("").parts}
    assert parts.isdisjoint({"utils", "util", "common", "helpers", "helper", "misc", "tools"})


@pytest.mark.parametrize("file", FILES, ids=module)
def test_nobody_writes_to_a_config(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            owner = ast.unparse(target.value) if isinstance(target, ast.Attribute) else ""
            assert not re.search(r"\bconfig$|\bconfig\.", owner), f"{file.name}:{node.lineno} writes to {owner}"
