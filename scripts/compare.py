"""Compare finished runs: `python scripts/compare.py folders=[runs/structure_grid]`."""

from __future__ import annotations

from robovlms.cli.app import entry
from robovlms.config.commands import CompareConfig
from robovlms.terminal import show


def run(config: CompareConfig) -> None:
    """Import what is heavy only once the config has been checked."""
    from robovlms.commands.compare import compare

    table, picture = compare(config.folders, config.latency_steps)
    show(f"{table}\n\n{picture}")


if __name__ == "__main__":
    entry("compare", CompareConfig, run)
