"""A released checkpoint as a policy of ours, with all that a checkpoint folder holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from robovlms.actions.plan import DataPlan
from robovlms.actions.statistics import Statistics, import_statistics
from robovlms.config.choices import NormalizationMode
from robovlms.config.data import DataConfig
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.policy.checkpoint import Trained, fill
from robovlms.policy.policy import VLAPolicy
from robovlms.policy.released.recipe import family_of, train_config
from robovlms.policy.released.settings import Settings
from robovlms.policy.released.source import find_weights, read_released
from robovlms.policy.released.weights import convert

FROM_BOUNDS = (NormalizationMode.bounds, NormalizationMode.identity)  # modes that need no statistics


def read_policy(source: Path, config: Path, data: DataConfig, checkpoint: str | None) -> Trained:
    """Read weights and configuration of RoboVLMs, strictly: what is cheap to check comes before the weights.

    Args:
        source: a file of weights, or a folder with one.
        config: its JSON configuration.
        data: what the policy's actions mean.
        checkpoint: see `train_config`.

    Raises:
        FileNotFoundError: something is not there; says what and where it was looked for.
        UserError: a file is damaged, or they do not belong together; names both, and every tensor without a place.
    """
    settings, path = Settings(config), find_weights(source)
    run = train_config(settings, data, checkpoint)
    plan = DataPlan.of(run.data, run.view.views)
    statistics = {each.name: _statistics(each.config, each.contract.names) for each in plan.sources}
    plan.normalizers(statistics)  # checks them
    released = read_released(path)
    policy = VLAPolicy.from_config(_without_weights(run), plan).eval()
    weights = convert(released, policy.backbone, family_of(settings), run.head.name)
    fill(
        policy,
        weights,
        str(path),
        f"config={config} is of another checkpoint, or backbone.checkpoint of another model.",
    )
    return Trained(run, policy, statistics, plan)


def _without_weights(run: TrainConfig) -> TrainConfig:
    return replace(run, backbone=replace(run.backbone, random_init=True))


def _statistics(data: DataConfig, names: list[str]) -> Statistics:
    """Return the statistics that the released policy acts by; with fixed bounds RoboVLMs has none, and these say so.

    Raises:
        UserError: they are needed, and no file is named.
    """
    normalization = data.normalization
    if normalization.statistics_file is not None:
        path = Path(normalization.statistics_file).expanduser()
        return import_statistics(path, normalization.statistics_key, len(names))
    if normalization.mode not in FROM_BOUNDS:
        raise UserError(
            "data.normalization.statistics_file: RoboVLMs keeps the statistics of RLDS data beside its checkpoints: "
            "name the file, e.g. RoboVLMs/configs/data/oxe_dataset_stats/dataset_statistics_bridge.json."
        )
    low, high, count = normalization.low, normalization.high, len(names)
    ends = {"min": [low] * count, "max": [high] * count, "q01": [low] * count, "q99": [high] * count}
    middle = {key: [(low + high) / 2] * count for key in ("mean", "q10", "q50", "q90")}
    return Statistics(std=[(high - low) / 2] * count, **ends, **middle, num_rows=0, steps=[], relative=[])
