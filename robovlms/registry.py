"""Names to classes, imported on first use.

A name is the module's name: `kosmos` is `robovlms/backbones/kosmos.py`, where a class is decorated with
`@BACKBONES.register("kosmos")`. Adding an option therefore adds a file and edits none.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T", bound=type)


def nearest(name: str, known: Iterable[str]) -> str:
    """Give " Did you mean 'x'?" for the closest known spelling, or "" when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


class Registry:
    """The options of one kind, found by the file names of one package."""

    def __init__(self, kind: str, package: str, library: str | None = None) -> None:
        self.kind = kind
        self.package = package
        self._library = library  # what all options stand on; its version is checked before one is imported
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate the class that the option `name` stands for."""

        def decorate(cls: T) -> T:
            if name in self._classes:
                raise ValueError(f"{self.kind} '{name}' is registered twice: {self._classes[name]} and {cls}")
            self._classes[name] = cls
            return cls

        return decorate

    def names(self) -> list[str]:
        """List every option, without importing any of them."""
        folder = Path(str(importlib.import_module(self.package).__file__)).parent
        return sorted(path.stem for path in folder.glob("*.py") if f'.register("{path.stem}")' in path.read_text())

    def get(self, name: str) -> Any:
        """Give the class behind `name`.

        Raises:
            ValueError: there is no such option; the message lists the options and the nearest spelling.
            ImportError: the library that the options stand on has a version that was not tested.
        """
        if name not in self._classes:
            if name not in self.names():
                known = self.names()
                raise ValueError(
                    f"{self.kind}={name} does not exist.{nearest(name, known)} Options: {', '.join(known)}."
                )
            if self._library is not None:
                check_version(self._library)
            importlib.import_module(f"{self.package}.{name}")
        return self._classes[name]


def check_version(library: str) -> None:
    """Compare the installed version of a library with what pyproject.toml asks for.

    Raises:
        ImportError: it is outside that range; names both.
    """
    from packaging.requirements import Requirement

    installed = importlib.metadata.version(library)
    for text in importlib.metadata.requires("robovlms") or []:
        wanted = Requirement(text)
        if wanted.name == library and wanted.marker is None and installed not in wanted.specifier:
            raise ImportError(
                f"{library} {installed} is installed, but robovlms needs {wanted.specifier}: run "
                f"pip install '{library}{wanted.specifier}'."
            )


BACKBONES = Registry("backbone", "robovlms.backbones", library="transformers")
HEADS = Registry("head", "robovlms.heads")
DATASETS = Registry("data", "robovlms.data")
SIMULATORS = Registry("sim", "robovlms.sims")
