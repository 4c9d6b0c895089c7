"""Merge a checkpoint's adapters: `python scripts/merge_lora.py checkpoint=runs/my_run output_dir=runs/merged`."""

from __future__ import annotations

from pathlib import Path

from robovlms.cli.app import entry
from robovlms.config.commands import MergeLoRAConfig


def main(config: MergeLoRAConfig) -> None:
    """Write `config.output_dir` from `config.checkpoint`."""
    from robovlms.commands.merge_lora import merge_checkpoint
    from robovlms.policy.checkpoint import resolve_checkpoint  # imports torch; --help must not

    merge_checkpoint(resolve_checkpoint(Path(config.checkpoint)), Path(config.output_dir))


if __name__ == "__main__":
    entry("merge_lora", MergeLoRAConfig, main)
