"""A checkpoint is one folder that says everything: config, weights, statistics, contract and, to resume, training
state.

Folders are written beside their place and renamed into it, so an interrupted save leaves the previous checkpoint whole.
Nothing is pickled.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from safetensors.torch import load_model, save_model

from robovlms.actions.plan import DataPlan
from robovlms.actions.statistics import Statistics, load_statistics, save_statistics
from robovlms.config.choices import ModelSize
from robovlms.config.renamed import rename
from robovlms.config.run import TrainConfig
from robovlms.config.schemas import schema_of
from robovlms.errors import UserError
from robovlms.policy.policy import VLAPolicy
from robovlms.policy.spec import SPEC, PolicySpec

CONFIG, WEIGHTS, STATS = "config.yaml", "model.safetensors", "action_stats.json"
VOCABULARY_HEAD = "backbone.unembed.weight"  # what only co-training needs, in families that do not tie it
BACKBONE, STATE = "backbone", "training_state"


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved config as YAML."""
    OmegaConf.save(OmegaConf.structured(config), path)


def load_config(path: Path) -> TrainConfig:
    """Read a config written by `save_config`, typed and checked again."""
    node: Any = OmegaConf.load(path)
    rename(node)
    schema = OmegaConf.structured(TrainConfig)
    for group in ("backbone", "head", "data", "sim"):
        if node[group] is not None:
            schema[group] = _typed(group, node[group].name)
    for name, source in (node.data.get("sources") or {}).items():
        schema.data.sources[name] = _typed("data", source.name)
    config = OmegaConf.to_object(OmegaConf.merge(schema, node))
    assert isinstance(config, TrainConfig)
    return config


def _typed(group: str, name: str) -> Any:
    return OmegaConf.structured(schema_of(group, name))


class Trained(NamedTuple):
    """A policy with what it needs to act."""

    config: TrainConfig
    policy: VLAPolicy
    statistics: dict[str, Statistics]  # of every source's actions, by name
    plan: DataPlan

    @property
    def spec(self) -> PolicySpec:
        """What the policy sees, says and how often."""
        size = self.policy.processor.image_spec.size
        views = dict.fromkeys(self.config.view.views, size)
        return PolicySpec.of(self.plan, self.config.window, views, self.statistics, self.config.name)


def save_policy(folder: Path, trained: Trained) -> None:
    """Write what rollout needs: the policy can be rebuilt from `folder` without the original VLM's files."""
    save_config(trained.config, folder / CONFIG)
    trained.spec.save(folder / SPEC)
    save_statistics(folder / STATS, trained.statistics)
    policy = trained.policy
    policy.backbone.save_pretrained(folder / BACKBONE, weights=False)
    save_model(policy, str(folder / WEIGHTS))


def load_policy(folder: Path, **changes: Any) -> Trained:
    """Rebuild the policy of a checkpoint folder, strictly.

    Args:
        folder: a `checkpoints/step_<number>` folder.
        changes: of its backbone's config.

    Raises:
        FileNotFoundError: the folder is not a checkpoint.
        UserError: the weights do not fit the config.
    """
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"{folder} is not a checkpoint: it has no {WEIGHTS}. Give .../checkpoints/step_<number>."
        )
    config = load_config(folder / CONFIG)
    config = replace(config, backbone=replace(config.backbone, **changes))
    backbone = replace(config.backbone, checkpoint=str(folder / BACKBONE), random_init=True, size=ModelSize.full)
    plan = DataPlan.of(config.data, config.view.views)
    policy = VLAPolicy.from_config(replace(config, backbone=backbone), plan)
    load_weights(policy, folder)
    trained = Trained(config, policy, load_statistics(folder / STATS), plan)
    _check_spec(trained, folder / SPEC)
    return trained


def _check_spec(trained: Trained, path: Path) -> None:
    """Hold what a checkpoint says of itself against its files; checkpoints of before have no such file."""
    if path.is_file() and PolicySpec.load(path) != trained.spec:
        raise UserError(f"{path} is not of this checkpoint's {CONFIG} and {STATS}: one of the files was changed.")


def load_weights(policy: VLAPolicy, folder: Path, optional: str | None = None) -> None:
    """Load model.safetensors, every tensor accounted for; that called `optional` may be on one side alone.

    Raises:
        UserError: names the missing and unexpected tensors.
    """
    try:
        missing, unexpected = load_model(policy, str(folder / WEIGHTS), strict=False)
    except RuntimeError as error:
        raise UserError(f"the weights in {folder} do not fit this policy: {error}") from error
    wrong = {"missing": sorted({*missing} - {optional}), "unexpected": sorted({*unexpected} - {optional})}
    if any(wrong.values()):
        raise UserError(f"the weights in {folder} do not fit this policy: {wrong}")


def checkpoints(run_folder: Path) -> list[Path]:
    """List a run's complete checkpoints, oldest first; half-written ones are not among them."""
    found = (run_folder / "checkpoints").glob("step_*")
    return sorted(path for path in found if re.fullmatch(r"step_\d+", path.name) and (path / WEIGHTS).is_file())


def resolve_checkpoint(path: Path) -> Path:
    """Return the checkpoint folder that `path` means: itself, or the newest one of a run folder.

    Raises:
        FileNotFoundError: neither.
    """
    if (path / WEIGHTS).is_file():
        return path
    found = checkpoints(path)
    if not found:
        raise FileNotFoundError(
            f"checkpoint={path} is neither a checkpoint nor a run with one: give runs/<name> or "
            "runs/<name>/checkpoints/step_<number>."
        )
    return found[-1]
