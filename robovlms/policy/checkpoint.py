"""A checkpoint is one folder that says everything: config, weights, statistics and, to resume, training state.

Folders are written beside their place and renamed into it, so an interrupted save leaves the previous checkpoint whole;
a manifest (`policy/manifest.py`), written last, tells a damaged copy. Nothing is pickled.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import load_file
from torch import Tensor

from robovlms.actions.older import imply_gripper
from robovlms.actions.plan import DataPlan
from robovlms.actions.statistics import STATS, Statistics, load_statistics, save_statistics
from robovlms.config.choices import CheckpointChoice, ModelSize
from robovlms.config.renamed import rename
from robovlms.config.run import TrainConfig
from robovlms.config.schemas import schema_of
from robovlms.errors import UserError
from robovlms.hub.repository import download, is_on_hub, origin, repository_of
from robovlms.policy.manifest import MANIFEST, check_checkpoint, reading
from robovlms.policy.policy import VLAPolicy, named_tensors, save_weights
from robovlms.policy.spec import SPEC, PolicySpec

T = TypeVar("T")

CONFIG, WEIGHTS = "config.yaml", "model.safetensors"
EMA = "ema.safetensors"  # moving average of what is trained, of a run with `ema`
BACKBONE, STATE = "backbone", "training_state"
MAX_CONFIG_BYTES, MAX_DEPTH = 1_000_000, 20  # of a config that is read: ours have some kB, and 5 levels
MAX_NAMED = 6  # tensors that a message names
ADVICE = f"Choose the backbone, head, structure and views that its {CONFIG} names."


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved config as YAML."""
    OmegaConf.save(OmegaConf.structured(config), path)


def load_config(path: Path) -> TrainConfig:
    """Read a config written by `save_config`, typed and checked again.

    A checkpoint may come from anywhere: what only a hand-made file has (aliases, interpolations, which could read
    environment variables) is refused.

    Raises:
        DamagedCheckpointError: it is no such config.
    """
    with reading(path.parent, path.name):
        _check_yaml(path)
        node: Any = OmegaConf.load(path)
        rename(node)
        schema = OmegaConf.structured(TrainConfig)
        for group in ("backbone", "head", "data", "sim", "parallel"):
            if node[group] is not None:
                schema[group] = _typed(group, node[group].name)
        for name, source in (node.data.get("sources") or {}).items():
            schema.data.sources[name] = _typed("data", source.name)
        try:
            config = OmegaConf.to_object(OmegaConf.merge(schema, node))
        except OmegaConfBaseException as error:
            raise ValueError(" ".join(str(error).split())) from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    assert isinstance(config, TrainConfig)
    is_older = "continuous_grippers" not in node.data.contract
    return replace(config, data=imply_gripper(config.data)) if is_older else config


def read_typed(schema: type[T], values: Mapping[str, Any]) -> T:
    """Return a config of one group from the values that `asdict` gave; they may come from anywhere.

    Raises:
        UserError: they are not of this schema, or have an interpolation, as no config of ours does.
    """
    failed = f"what was written of {schema.__name__} cannot be read"
    if "${" in str(values):
        raise UserError(f"{failed}: it has an interpolation, ${{...}}, which is not resolved.")
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), dict(values)))
    except OmegaConfBaseException as error:
        raise UserError(f"{failed}: {' '.join(str(error).split())}") from error
    assert isinstance(config, schema)
    return config


def _check_yaml(path: Path) -> None:
    """Refuse what no config of ours has, before it costs anything.

    Raises:
        ValueError: the file is no YAML, has aliases or interpolations, or is too large or nested too deeply.
    """
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"it has {path.stat().st_size} bytes, more than {MAX_CONFIG_BYTES}")
    depth = 0
    try:
        for event in yaml.parse(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            line = event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"line {line} has an alias, *{event.anchor}")
            if depth > MAX_DEPTH:
                raise ValueError(f"line {line} is nested deeper than {MAX_DEPTH} levels")
            if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
                raise ValueError(f"line {line} has an interpolation, {event.value}, which is not resolved")
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


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
    """Write what rollout needs into a `new_checkpoint`: the policy can be rebuilt without the original VLM's files."""
    save_description(folder, trained)
    trained.policy.backbone.save_pretrained(folder / BACKBONE, weights=False)
    save_weights(folder / WEIGHTS, trained.policy, named_tensors(trained.policy))


def save_description(folder: Path, trained: Trained) -> None:
    """Write config, spec and statistics."""
    save_config(trained.config, folder / CONFIG)
    trained.spec.save(folder / SPEC)
    save_statistics(folder / STATS, trained.statistics)


def load_policy(folder: Path, **changes: Any) -> Trained:
    """Rebuild the policy of a checkpoint folder, strictly.

    Args:
        folder: a `checkpoints/step_<number>` folder.
        changes: of its backbone's config.

    Raises:
        FileNotFoundError: the folder is not a checkpoint.
        DamagedCheckpointError: a file of it is not what was written.
        UserError: the weights do not fit the config.
    """
    if not is_checkpoint(folder):
        raise FileNotFoundError(
            f"{folder} is not a checkpoint: it has no {WEIGHTS}. Give .../checkpoints/step_<number>."
        )
    check_checkpoint(folder)
    config = load_config(folder / CONFIG)
    config = replace(config, backbone=replace(config.backbone, **changes))
    backbone = replace(config.backbone, checkpoint=str(folder / BACKBONE), random_init=True, size=ModelSize.full)
    plan = DataPlan.of(config.data, config.view.views)
    with reading(folder, BACKBONE):
        policy = VLAPolicy.from_config(replace(config, backbone=backbone), plan)
    load_weights(policy, folder)
    trained = Trained(config, policy, load_stats(folder), plan)
    _check_spec(trained, folder)
    return trained


def _check_spec(trained: Trained, folder: Path) -> None:
    """Hold what a checkpoint says of itself against its files; checkpoints of before have no such file."""
    if not (folder / SPEC).is_file():
        return
    with reading(folder, SPEC):
        found = PolicySpec.load(folder / SPEC)
    if found != trained.spec:
        raise UserError(
            f"{folder / SPEC} is not of this checkpoint's {CONFIG} and {STATS}: one of the files was changed."
        )


def load_stats(folder: Path) -> dict[str, Statistics]:
    """Read the action statistics of a checkpoint, by data set."""
    with reading(folder, STATS):
        return load_statistics(folder / STATS)


def load_weights(policy: VLAPolicy, folder: Path, optional: str | None = None) -> None:
    """Load model.safetensors, every tensor accounted for; that called `optional` may be on one side alone.

    Raises:
        DamagedCheckpointError: the file cannot be read.
        UserError: names missing and unexpected tensors, or those of another shape.
    """
    fill(policy, read_weights(folder), str(folder), ADVICE, {optional} - {None})


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of model.safetensors.

    Raises:
        DamagedCheckpointError: the file cannot be read.
    """
    with reading(folder, WEIGHTS):
        return load_file(folder / WEIGHTS)


def fill(
    policy: VLAPolicy, weights: Mapping[str, Tensor], source: str, advice: str, optional: Collection[str | None] = ()
) -> None:
    """Load weights into a policy, every tensor accounted for; `optional` ones may be on one side alone.

    Raises:
        UserError: names missing and unexpected tensors, or those of another shape, and ends with `advice`.
    """
    known = policy.state_dict()
    sized = {key: value.shape for key, value in known.items() if not key.endswith("_extra_state")}  # a head's tokenizer
    if wrong := [key for key, value in weights.items() if sized.get(key, value.shape) != value.shape]:
        told = ", ".join(
            f"{key} {list(weights[key].shape)} instead of {list(known[key].shape)}" for key in wrong[:MAX_NAMED]
        )
        raise UserError(
            f"the weights in {source} do not fit this policy: {len(wrong)} of another shape: {told}. {advice}"
        )
    missing, unexpected = policy.load_state_dict(weights, strict=False)
    loaded = {known[key].data_ptr() for key in weights.keys() & known.keys()}  # tied weights lie there under one name
    wrong_sides = {
        "missing": sorted(key for key in missing if key not in optional and known[key].data_ptr() not in loaded),
        "unexpected": sorted(key for key in unexpected if key not in optional),
    }
    if any(wrong_sides.values()):
        told = "; ".join(f"{len(keys)} {side}: {_some(keys)}" for side, keys in wrong_sides.items() if keys)
        raise UserError(f"the weights in {source} do not fit this policy: {told}. {advice}")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:MAX_NAMED]) + (f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else "")


def checkpoints(run_folder: Path) -> list[Path]:
    """List a run's complete checkpoints, oldest first; half-written and abandoned ones are not among them."""
    found = (run_folder / "checkpoints").glob("step_*")
    return sorted((path for path in found if re.fullmatch(r"step_\d+", path.name) and path.is_dir()), key=step_of)


def is_checkpoint(folder: Path) -> bool:
    """Tell whether a folder is a checkpoint, even one that has lost a file, or a path the address of one on the Hub."""
    return is_on_hub(folder) or any((folder / name).exists() for name in (WEIGHTS, MANIFEST, BACKBONE))


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint's name says."""
    return int(checkpoint.name.removeprefix("step_"))


def run_folder_of(checkpoint: Path) -> Path:
    """Return the run that a checkpoint belongs to; one that lies alone, e.g. a merged one, is its own. What is made of
    one from the Hub goes into `runs/<owner>--<name>` of the working directory, not into the cache.
    """
    if (repository := origin(checkpoint)) is not None:
        return Path("runs") / repository.name.replace("/", "--")
    folder = checkpoint.absolute()
    return folder.parents[1] if folder.parent.name == "checkpoints" else folder


def resolve_checkpoint(path: Path) -> Path:
    """Return the checkpoint folder that `path` means: itself, the newest one of a run folder, or what is downloaded
    from the Hub.

    Raises:
        FileNotFoundError: none of them.
        UserError: it cannot be downloaded, or not all of it has been.
    """
    if is_on_hub(path):
        folder = download(repository_of(path), MANIFEST)
        check_checkpoint(folder, hashes=False)
        return folder
    if is_checkpoint(path):
        return path
    found = checkpoints(path)
    if not found:
        raise FileNotFoundError(
            f"checkpoint={path} is neither a checkpoint nor a run with one: give runs/<name>, "
            "runs/<name>/checkpoints/step_<number>, or hf://<owner>/<name> for one on the Hub."
        )
    return found[-1]


def choose_checkpoints(path: Path, choice: CheckpointChoice) -> list[Path]:
    """Return the checkpoints of a run that a choice means, oldest first; a checkpoint is the only one of itself.

    Raises:
        FileNotFoundError: `path` is neither.
        UserError: the run has none of them; names those that it has.
    """
    if choice.every is None or is_checkpoint(path):
        return [resolve_checkpoint(path)]
    newest, found = resolve_checkpoint(path), checkpoints(path)
    chosen = [checkpoint for checkpoint in found if step_of(checkpoint) in choice]
    if not chosen:
        steps = ", ".join(str(step_of(checkpoint)) for checkpoint in found)
        raise UserError(
            f"{newest.parent} has no checkpoint at a multiple of {choice.every} steps, but those of {steps}: give "
            "checkpoints=all, or another checkpoints=every:<steps>."
        )
    return chosen
