"""Pack a data set for fast reading: `python scripts/convert_data.py data=calvin data.root=/path view=side_wrist`."""

from __future__ import annotations

from robovlms.cli.app import entry
from robovlms.config.commands import ConvertDataConfig
from robovlms.terminal import show


def main(config: ConvertDataConfig) -> None:
    """Pack every split, and say what was written."""
    from robovlms.commands.convert_data import convert_data  # imports torch; --help must not

    for summary in convert_data(config):
        show(summary)


if __name__ == "__main__":
    entry("convert_data", ConvertDataConfig, main)
