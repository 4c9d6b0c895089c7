"""Shared by the config tests: compose as a command does, in this process."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from robovlms.actions.plan import DataPlan
from robovlms.cli.app import store_schemas
from robovlms.cli.jobs import to_dataclass
from robovlms.config.presets import config_folder, options
from robovlms.config.run import TrainConfig
from robovlms.data.base import RobotDataset
from robovlms.data.opening import build_dataset

PRESETS = options("experiment")
BACKBONES = options("backbone")


def plan_of(config: TrainConfig) -> DataPlan:
    """Return the plan of a run's data."""
    return DataPlan.of(config.data, config.view.views)


def open_windows(config: TrainConfig, split: str) -> RobotDataset:
    """Open the windows of a run's data."""
    return build_dataset(plan_of(config), config.window, split)


def composed(*overrides: str, config_name: str = "train") -> DictConfig:
    """Compose a config, untyped and with `???` where the user has to say something. Costs 0.3 s the first time."""
    return deepcopy(_compose(config_name, overrides))


@cache
def _compose(config_name: str, overrides: tuple[str, ...]) -> DictConfig:
    store_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        return compose(config_name, list(overrides))


def completed(config: DictConfig, *values: str, schema: type = TrainConfig) -> Any:
    """Set `values` (key=value), answer every `???` that is left, and give the typed config, all its checks passed."""
    config.merge_with_dotlist(list(values))
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, "tcp" if key.endswith(".frame") else "1")
    return to_dataclass(config, schema)
