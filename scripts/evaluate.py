"""Evaluate a checkpoint in closed loop: `python scripts/evaluate.py checkpoint=runs/quickstart_nano sim=metaworld`."""

from __future__ import annotations

from robovlms.cli.app import entry
from robovlms.config.commands import EvaluateConfig


def run(config: EvaluateConfig) -> None:
    """Import what is heavy only once the config has been checked."""
    from robovlms.commands.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    entry("evaluate", EvaluateConfig, run)
