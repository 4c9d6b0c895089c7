"""Convert an original checkpoint into a folder of ours: `python scripts/convert_backbone.py family=moondream ...`."""

from __future__ import annotations

from robovlms.cli.app import entry
from robovlms.config.commands import ConvertBackboneConfig


def main(config: ConvertBackboneConfig) -> None:
    """Write `config.output_dir` from `config.source`."""
    from robovlms.commands.convert_backbone import convert_folder  # imports torch; --help must not

    convert_folder(config.family, config.source, config.output_dir)


if __name__ == "__main__":
    entry("convert_backbone", ConvertBackboneConfig, main)
