"""Tables of the documentation that a benchmark writes, between two marks of its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def replace_table(page: Path, script: str, lines: Sequence[str]) -> None:
    """Write the lines of a table into a page, where the last ones of that script stand."""
    start, end = f"<!-- table of {script} -->\n", "<!-- end of the table -->\n"
    before, _, rest = page.read_text(encoding="utf-8").partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{page} has no place for the table of {script}.")
    page.write_text(before + start + "\n".join(lines) + "\n" + end + after, encoding="utf-8")
