"""Names to classes, imported on first use.

`kosmos` is found where a class is decorated with `@BACKBONES.register("kosmos")`, in any module of the registry's
package, or where an installed package names a module as entry point `kosmos` of the group `robovlms.backbones`. Adding
an option therefore adds files and edits none.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.metadata
import tomllib
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from robovlms.errors import UserError

T = TypeVar("T", bound=type)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest known spelling, or "" when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


class Registry:
    """The options of one kind, found in the modules of one package by reading them, without importing any."""

    def __init__(self, name: str, kind: str, package: str, library: str | None = None) -> None:
        """Take the registry's own name in the code, as decorators write it, and the config group of its options."""
        self.name, self.kind, self.package = name, kind, package
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

    @cached_property
    def modules(self) -> dict[str, str]:
        """The module of every option, by the option's name."""
        folder = Path(str(importlib.import_module(self.package).__file__)).parent
        found = {}
        for path in sorted(folder.rglob("*.py")):
            inner = path.relative_to(folder).with_suffix("").parts
            for name in _registered(path, self.name):
                found[name] = ".".join([self.package, *inner])
        return dict(sorted({**found, **self._of_other_packages(found)}.items()))

    def _of_other_packages(self, ours: dict[str, str]) -> dict[str, str]:
        """Return the modules that installed packages name as entry points, by option."""
        found = {}
        for point in entry_points(self.package.replace(".families", "")):
            if point.name in ours:
                raise UserError(f"{point.group}: {point.value} brings {self.kind}={point.name}, which is one of ours.")
            found[point.name] = point.module
        return found

    def names(self) -> list[str]:
        """List every option, without importing any of them."""
        return list(self.modules)

    def get(self, name: str) -> Any:
        """Return the class behind `name`.

        Raises:
            UserError: there is no such option; the message lists the options and the nearest spelling.
            ImportError: the library that the options stand on has a version that was not tested.
        """
        if name not in self._classes:
            if name not in self.modules:
                known = self.names()
                raise UserError(
                    f"{self.kind}={name} does not exist.{nearest(name, known)} Options: {', '.join(known)}."
                )
            if self._library is not None:
                check_version(self._library)
            importlib.import_module(self.modules[name])
        if name not in self._classes:
            raise UserError(f'{self.modules[name]} has no class decorated with @{self.name}.register("{name}").')
        return self._classes[name]


def _registered(path: Path, registry: str) -> list[str]:
    """Return the names that a file's classes are registered under, e.g. by `@HEADS.register("flow")`."""
    text = path.read_text(encoding="utf-8")
    if f"{registry}.register" not in text:
        return []
    decorators = [d for node in ast.parse(text).body if isinstance(node, ast.ClassDef) for d in node.decorator_list]
    return [
        str(ast.literal_eval(call.args[0]))
        for call in decorators
        if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[0].endswith(registry)
    ]


def entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
    """List what installed packages bring to a group, e.g. `robovlms.heads`, in the order of names."""
    return sorted(importlib.metadata.entry_points(group=group), key=lambda point: (point.name, point.value))


def requirements() -> list[str]:
    """Return what this package needs: as it was installed, or as the checkout that it is run from says."""
    try:
        return importlib.metadata.requires("robovlms") or []
    except importlib.metadata.PackageNotFoundError:
        project = Path(__file__).parents[1] / "pyproject.toml"
        if not project.is_file():
            return []
        said = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        extras = said["optional-dependencies"].items()
        return said["dependencies"] + [f'{need}; extra == "{extra}"' for extra, needs in extras for need in needs]


def check_version(library: str) -> None:
    """Compare the installed version of a library with what pyproject.toml asks for.

    Raises:
        ImportError: it is outside that range; names both.
    """
    from packaging.requirements import Requirement

    installed = importlib.metadata.version(library)
    for text in requirements():
        wanted = Requirement(text)
        if wanted.name == library and wanted.marker is None and installed not in wanted.specifier:
            raise ImportError(
                f"{library} {installed} is installed, but robovlms needs {wanted.specifier}: run "
                f"pip install '{library}{wanted.specifier}'."
            )


BACKBONES = Registry("BACKBONES", "backbone", "robovlms.backbones.families", library="transformers")
HEADS = Registry("HEADS", "head", "robovlms.heads")
DATASETS = Registry("DATASETS", "data", "robovlms.data")
SIMULATORS = Registry("SIMULATORS", "sim", "robovlms.sims")
PARALLEL = Registry("PARALLEL", "parallel", "robovlms.training.parallel")
PROTOCOLS = Registry("PROTOCOLS", "protocol", "robovlms.serving.protocols")
