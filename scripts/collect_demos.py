"""Collect demonstrations by a simulator's scripted experts: `python scripts/collect_demos.py root=runs/demos`."""

from __future__ import annotations

from pathlib import Path

from robovlms.cli.app import entry
from robovlms.config.commands import CollectDemosConfig


def main(config: CollectDemosConfig) -> None:
    """Collect into `config.root`."""
    from robovlms.commands.collect_demos import collect_demos  # imports torch; --help must not

    collect_demos(config.collect, config.sim, Path(config.root))


if __name__ == "__main__":
    entry("collect_demos", CollectDemosConfig, main)
