"""The package works where it is installed, where it is only on the path, and with what other packages bring."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SOURCES = ("robovlms", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path, path: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a wheel of this checkout was installed into, without network. Costs 5 s."""
    folder = tmp_path_factory.mktemp("wheel")
    source, site = folder / "source", folder / "site"
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    made = run(*pip, "-t", str(site), str(source), cwd=folder, path="")
    assert made.returncode == 0, made.stderr
    return site


def test_the_presets_are_installed(installed: Path) -> None:
    presets = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert {
        path.relative_to(installed / "robovlms/configs") for path in installed.rglob("configs/**/*.yaml")
    } == presets
    templates = {path.name for path in (ROOT / "robovlms").rglob("templates/*")}
    assert {path.name for path in installed.rglob("templates/*")} == templates


@pytest.mark.parametrize("command", ["train", "evaluate", "collect-demos", "inspect-data", "convert-data", "compare"])
def test_an_installed_command_helps_from_any_folder(command: str, installed: Path, tmp_path: Path) -> None:
    result = run(installed / "bin" / f"robovlms-{command}", "--help", cwd=tmp_path, path=str(installed))
    assert result.returncode == 0, result.stderr
    assert "Examples:" in result.stdout


def test_an_installed_command_composes_a_preset_and_says_what_is_missing(installed: Path, tmp_path: Path) -> None:
    result = run(installed / "bin/robovlms-train", "experiment=calvin_perform", cwd=tmp_path, path=str(installed))
    assert (result.returncode, result.stderr) == (
        2,
        "error: data.root: not set. Say on the command line, e.g. data.root=/path/to/task_ABCD_D\n",
    )
    assert list(tmp_path.iterdir()) == []


HIDE = """
import importlib.metadata as metadata
found = metadata.distribution
def distribution(name):
    if name == "robovlms":
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.distribution = distribution
metadata.requires = lambda name: distribution(name).requires
from robovlms.registry import BACKBONES, requirements
assert any(text.startswith("transformers") for text in requirements())
print(BACKBONES.get("kosmos").__name__)
"""


@pytest.mark.slow
def test_a_checkout_that_was_never_installed_finds_its_options_and_what_they_need(tmp_path: Path) -> None:
    result = run(sys.executable, "-c", HIDE, cwd=tmp_path, path=str(ROOT))
    assert result.stdout.strip() == "Kosmos", result.stderr


PLUGIN = {
    "their_robot/__init__.py": "",
    "their_robot/head.py": """
from robovlms.registry import HEADS
from robovlms.heads.mlp import MLPHead

@HEADS.register("double")
class DoubleHead(MLPHead):
    pass
""",
    "their_robot/schema.py": """
from dataclasses import dataclass
from robovlms.config.fields import number
from robovlms.config.policy import HeadConfig
from robovlms.config.schemas import schema

@schema("head/double")
@dataclass(kw_only=True)
class DoubleHeadConfig(HeadConfig):
    factor: float = number(2.0, above=0)
""",
    "their_robot/configs/head/double.yaml": "defaults:\n  - /schema/head/double@_here_\n  - _self_\nname: double\n",
    "their_robot/configs/experiment/theirs.yaml": (
        "# @package _global_\n# What their robot does\ndefaults:\n  - override /head: double\n"
        "  - override /structure: one_step\n  - override /window: w1_c10\n"
    ),
    "their_robot-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: their-robot\nVersion: 1\n",
    "their_robot-1.dist-info/entry_points.txt": """
[robovlms.heads]
double = their_robot.head
[robovlms.schemas]
double = their_robot.schema
[robovlms.configs]
theirs = their_robot.configs
""",
}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that another package was installed into, which brings a head, its schema and presets."""
    folder = tmp_path_factory.mktemp("plugin")
    for name, text in PLUGIN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["--help"], 0, "theirs                       What their robot does"),
        (["--cfg", "job", "experiment=theirs"], 0, "factor: 2.0"),
        (["data.root=/x", "experiment=theirs", "head.factor=-1"], 2, "head.factor=-1.0 must be above 0"),
        (["data.root=/x", "experiment=theirs", "head.factr=1"], 2, "Did you mean 'head.factor'?"),
        (["head=doubel"], 2, "Did you mean 'double'?"),
    ],
)
def test_another_package_brings_a_head_with_options_of_its_own(
    arguments: list[str], status: int, expected: str, plugin: Path, tmp_path: Path
) -> None:
    result = run(sys.executable, ROOT / "train.py", *arguments, cwd=tmp_path, path=f"{ROOT}:{plugin}")
    assert result.returncode == status, result.stderr
    assert expected in result.stdout + result.stderr


def test_another_packages_head_is_found_and_built(plugin: Path, tmp_path: Path) -> None:
    text = "from robovlms.registry import HEADS; print(HEADS.names(), HEADS.get('double').__module__)"
    result = run(sys.executable, "-c", text, cwd=tmp_path, path=f"{ROOT}:{plugin}")
    assert result.stdout.strip().endswith("their_robot.head"), result.stderr
    assert "'double', 'fast'" in result.stdout
