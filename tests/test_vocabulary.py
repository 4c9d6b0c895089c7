"""One thing has one name, the field's; docstrings begin with what the caller gets."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("robovlms", "configs", "docs", "benchmarks", "scripts")
SUFFIXES = {".py", ".yaml", ".md", ".html", ".js", ".css"}
FILES = sorted(
    [ROOT / "README.md", ROOT / "train.py"]
    + [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
)
CODE = [path for path in FILES if path.suffix == ".py"]

# What is not written, and what is written instead. Expressions match whole words, upper or lower case.
BANNED = {
    "told the opposite": "opposite instruction",
    "at the wheel": "runner",
    "taught": "target, supervised",
    "untaught": "unlabelled",
    "words_accuracy": "text_accuracy",
    "read_words": "lm_hidden",
    "predict_words": "lm_logits",
    "prepare_writing": "enable_lm_head",
    "let_queries_see_each_other": "enable_bidirectional_queries",
    "start_context": "new_cache",
    "parts_of|find_part|open_parts|join_parts": "sources_of, find_source, open_sources, join_sources",
    r"data\.parts|evaluation\.part": "data.sources, evaluation.source",
    r"(sample|batch)\.(part|entries)|batch\.seen": "source, action_dims, view_mask",
    "paint": "inpaint",
    "follows_plans": "supports_prefix",
    "(is|are|be|was) not looked at|not looked at": "is ignored",
    "mend|mends|mended|mending": "fix",
    "can(not)? be had": "is (not) available",
    "ears": "audio tower",
    "mute": "without instruction",
    "(gone|goes|go|went) on with": "resumed",
}
# Files that may say a word, each with its reason.
EXCEPTIONS = {
    "robovlms/config/renamed.py": "holds old names, so that old checkpoints and commands keep their meaning",
    "robovlms/cli/arguments.py": "writes old names in values as they are called today",
}


def name(path: Path) -> str:
    """Return a file's name in the repository."""
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_thing_is_called_what_the_field_calls_it(path: Path) -> None:
    if name(path) in EXCEPTIONS:
        return
    text = path.read_text(encoding="utf-8")
    found = [
        f"{name(path)}:{text[: match.start()].count(chr(10)) + 1}: '{match[0]}': write {instead}"
        for word, instead in BANNED.items()
        for match in re.finditer(rf"(?<![^\W_]|-)(?:{word})(?![^\W_]|-)", text, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


def test_every_exception_is_still_needed() -> None:
    for file in EXCEPTIONS:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert any(re.search(rf"\b(?:{word})\b", text, re.IGNORECASE) for word in BANNED), f"{file} needs none any more"


def public(tree: ast.Module) -> list[tuple[str, str | None]]:
    """Return the public functions, classes and methods of a module with their docstrings; `forward` is torch's."""
    found = []
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else []
        for item in [node, *members]:
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not item.name.startswith(
                "_"
            ):
                found.append((item.name, ast.get_docstring(item)))
    return found


@pytest.mark.parametrize("path", CODE, ids=name)
def test_public_docstrings_say_what_the_caller_gets(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{name(path)} has no docstring"
    for item, text in public(tree):
        if item in ("forward", "wrapper"):
            continue
        first = (text or "").split("\n")[0]
        assert first, f"{name(path)}: {item} has no docstring"
        assert not re.match(r"Gives?\b", first), (
            f"{name(path)}: {item} begins with '{first.split()[0]}': write Return ..."
        )
