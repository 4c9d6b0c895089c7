"""Every key of a config is read by some code: what nobody reads would be written into configs and change nothing."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest

from robovlms.config.fields import marked
from robovlms.config.presets import config_folder
from robovlms.config.schemas import schemas

PACKAGE = Path(__file__).parents[2] / "robovlms"


@dataclass(frozen=True)
class Module:
    """What a module reads: attributes by the last name of their owner, and the words in it."""

    reads: frozenset[tuple[str, str]]
    words: frozenset[str]
    wholes: frozenset[str]  # names whose fields are all read: asdict(x), vars(x), fields(x)
    prefixes: frozenset[str]  # of names that are put together: getattr(config, f"freeze_{part}")


@cache
def modules() -> list[Module]:
    """Return the modules that act; those that declare fields do not count, but for what they check together."""
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if not {"config", "schemas"} & set(path.parts[-2:-1])]
    paths = [path for path in paths if path.name != "schema.py"] + [PACKAGE / "config" / "checks.py"]
    return [read(ast.parse(path.read_text(encoding="utf-8"))) for path in paths]


def read(tree: ast.Module) -> Module:
    aliases: dict[str, set[str]] = {}
    reads, words, wholes, prefixes = set(), set(), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            aliases |= dict(pairs(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = last(node.value)
            reads |= {(name, node.attr) for name in {owner, *aliases.get(owner, ())}}
        elif isinstance(node, ast.Call) and last(node.func) == "getattr" and isinstance(node.args[1], ast.JoinedStr):
            prefixes.add(str(ast.literal_eval(node.args[1].values[0])))
        elif isinstance(node, ast.Call) and last(node.func) in ("asdict", "vars", "fields", "replace") and node.args:
            owner = last(node.args[0])
            wholes |= {owner, *aliases.get(owner, ())}
        elif isinstance(node, ast.Name):
            words.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words |= set(re.findall(r"\w+", node.value)) if len(node.value) < 40 else set()
    return Module(frozenset(reads), frozenset(words), frozenset(wholes), frozenset(prefixes))


def pairs(node: ast.Assign) -> Iterator[tuple[str, set[str]]]:
    """Return names and what they stand for: `config, data = self.config, self.config.data`."""
    for target in node.targets:
        left = target.elts if isinstance(target, ast.Tuple) else [target]
        right = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        for name, value in zip(left, right, strict=False):
            yield last(name), {last(value)}


def last(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


def places() -> Iterator[tuple[type, str]]:
    """Return every dataclass of the schemas with the key it lies under."""
    for place, schema in schemas().items():
        yield from below(schema, place.partition("/")[0])


def below(cls: type, key: str) -> Iterator[tuple[type, str]]:
    yield cls, key
    hints = get_type_hints(cls)
    for item in fields(cls):
        parts = () if get_origin(hints[item.name]) is dict else (hints[item.name], *get_args(hints[item.name]))
        for part in parts:
            if is_dataclass(part):
                yield from below(part, item.name)  # type: ignore[arg-type]


def own_methods(cls: type) -> list[Callable[..., object]]:
    """Return what a schema computes of its fields; `check` only looks whether they go together."""
    found = [value.fget if isinstance(value, property) else value for value in vars(cls).values()]
    return [
        value
        for value in found
        if inspect.isfunction(value) and value.__name__ != "check" and not value.__name__.startswith("__")
    ]


def is_read(cls: type, key: str, name: str) -> bool:
    if f"${{{key}.{name}}}" in (config_folder() / "train.yaml").read_text(encoding="utf-8"):
        return True
    if any(f"self.{name}" in inspect.getsource(method) for method in own_methods(cls)):
        return True
    family = {base.__name__ for base in (*cls.__mro__, *cls.__subclasses__())} - {"object", "Checked"}
    for module in modules():
        if (key, name) in module.reads or (key in module.wholes and name in module.words):
            return True
        said = name in module.words or any(name.startswith(prefix) for prefix in module.prefixes)
        if family & module.words and (said or any(attribute == name for _, attribute in module.reads)):
            return True
    return any(key in module.wholes for module in modules()) and key in ("convert", "schedule", "trainer")


CASES = sorted({(cls.__name__, key): (cls, key) for cls, key in places()}.items())


@pytest.mark.parametrize(("cls", "key"), [case for _, case in CASES], ids=[f"{key}-{name}" for (name, key), _ in CASES])
def test_every_key_is_read_by_some_code(cls: type, key: str) -> None:
    assert [item.name for item in fields(cls) if not is_read(cls, key, item.name)] == []


def test_a_key_that_nobody_reads_is_noticed() -> None:
    @dataclass
    class Parallel:
        sharding_of_nobody: str = marked("full")

    assert not is_read(Parallel, "parallel", "sharding_of_nobody")
