"""Rooms, floors and circles of the package, by counting imports: `python benchmarks/rooms.py`.

A room is a module or folder directly below `robovlms/`; its floor is the longest way down through what it imports.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "robovlms"


def room_of(parts: tuple[str, ...]) -> str:
    """Return the room of a module: its first folder, or itself; schemas of options count as `config`."""
    return "config" if {"schema", "schemas"} & set(parts[1:]) else parts[0]


def graph() -> dict[str, dict[str, set[str]]]:
    """Return which rooms each room imports, and which of its files do."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        room = room_of(parts)
        found[room]  # a room without imports is one, too
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("robovlms."):
                other = room_of(tuple((node.module or "").split(".")[1:]))
                if other != room:
                    found[room][other].add(".".join(parts))
    return found


def floors(rooms: dict[str, dict[str, set[str]]]) -> dict[str, int]:
    """Return the floor of every room; rooms that import nothing are on the first."""

    @cache
    def floor(room: str, above: frozenset[str] = frozenset()) -> int:
        below = [other for other in rooms[room] if other not in above | {room}]
        return 1 + max((floor(other, above | {room}) for other in below), default=0)

    return {room: floor(room) for room in rooms}


def main() -> None:
    """Print a table of rooms with their floors, and the circles."""
    rooms = graph()
    found = floors(rooms)
    circles = sorted({tuple(sorted((a, b))) for a in rooms for b in rooms[a] if a in rooms[b]})
    for room in sorted(rooms, key=lambda name: (found[name], name)):
        print(f"{found[room]:2}  {room:12} {' '.join(sorted(rooms[room]))}")
    print(f"{len(rooms)} rooms, {max(found.values())} floors, {len(circles)} circles {circles}")
    for a, b in circles:
        print(f"  {a} -> {b}: {sorted(rooms[a][b])}\n  {b} -> {a}: {sorted(rooms[b][a])}")


if __name__ == "__main__":
    main()
