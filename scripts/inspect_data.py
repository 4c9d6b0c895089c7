"""Look at a data set: `python scripts/inspect_data.py data=calvin data.root=/path/to/task_ABCD_D`."""

from __future__ import annotations

from robovlms.cli.app import entry
from robovlms.config.commands import InspectConfig
from robovlms.terminal import show


def main(config: InspectConfig) -> None:
    """Write the pages, and print what they say."""
    from robovlms.commands.inspect_data import inspect_data  # imports torch; --help must not
    from robovlms.inspection.text import format_report

    for report, index in inspect_data(config):
        show(f"{format_report(report)}\n\n{index}\n")


if __name__ == "__main__":
    entry("inspect_data", InspectConfig, main)
