"""What is said, and how often: on terminals without our characters, and once a launch of several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from robovlms.data.files.cache_folder import VARIABLE, cache_folder
from robovlms.errors import UserError

ROOT = Path(__file__).parents[2]
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}  # as in a bare container


def train(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    given = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, env=given, capture_output=True, timeout=100, check=False)


def test_every_module_is_found_and_an_error_is_said_in_a_locale_without_its_characters() -> None:
    result = train("backbone=nano", "data.root=/数据", "data.fraction=2", **ASCII)
    assert result.returncode == 2
    assert result.stderr == b"error: data.fraction=2.0 must be above 0 and at most 1.\n"
    shown = train("backbone=数据", **ASCII)
    assert shown.returncode == 2
    assert b"Traceback" not in shown.stderr
    assert train("--help", **ASCII).returncode == 0


def launch(folder: Path, rank: int, *arguments: str) -> str:
    """Start one process of a launch as torchrun does."""
    place = folder / "attempt_0" / str(rank)
    place.mkdir(parents=True, exist_ok=True)
    given = {"RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_ERROR_FILE": str(place / "error.json")}
    return train(*arguments, **given).stderr.decode()


def test_a_warning_is_said_once_by_a_launch_of_several_processes(tmp_path: Path) -> None:
    said = [launch(tmp_path, rank, "data.parts.a.root=/x", "optimizer.lr=-1") for rank in (1, 0)]
    assert sum(text.count("is called data.sources") for text in said) == 1


def test_a_warning_that_only_one_process_has_is_said_by_it(tmp_path: Path) -> None:
    assert "data.parts.a.root is called" in launch(tmp_path, 0, "data.parts.a.root=/x", "optimizer.lr=-1")
    assert "data.parts.b.root is called" in launch(tmp_path, 1, "data.parts.b.root=/x", "optimizer.lr=-1")


def test_a_reader_that_closes_the_pipe_is_no_error() -> None:
    command = f"{sys.executable} {ROOT / 'train.py'} --help | head -1; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_who_has_no_home_has_a_cache_among_the_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a user number without an entry
    assert cache_folder(None).name == f"robovlms-{os.getuid()}"
    with pytest.raises(UserError, match="there is no home folder"):
        cache_folder("~/here")
