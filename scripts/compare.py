"""Compare finished runs: `python scripts/compare.py folders=[runs/structure_grid]`."""

from __future__ import annotations

from robovlms.cli import entry
from robovlms.config import CompareConfig


def run(config: CompareConfig) -> None:
    """Import what is heavy only once the config has been checked."""
    from robovlms.comparison import compare

    table, picture = compare(config.folders, config.latency_steps)
    print(f"{table}\n\n{picture}")


if __name__ == "__main__":
    entry("compare", CompareConfig, run)
