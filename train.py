"""Train a policy: `python train.py experiment=quickstart`; `python train.py --help` lists what there is to choose."""

from __future__ import annotations

from robovlms.cli.app import entry
from robovlms.config.run import TrainConfig


def run(config: TrainConfig) -> None:
    """Import what is heavy only once the config has been checked."""
    from robovlms.commands.train import train

    train(config)


if __name__ == "__main__":
    entry("train", TrainConfig, run)
