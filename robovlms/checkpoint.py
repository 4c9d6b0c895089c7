"""A checkpoint is one folder that says everything: config, weights, statistics, contract and, to resume, training
state.

Folders are written beside their place and renamed into it, so an interrupted save leaves the previous checkpoint whole.
Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor

from robovlms.backbones.lora import merge_lora
from robovlms.choices import ModelSize, WeightType
from robovlms.config import SCHEMAS, LoRAConfig, TrainConfig
from robovlms.parts import parts_of
from robovlms.policy import VLAPolicy
from robovlms.statistics import Statistics, load_statistics, save_statistics

CONFIG, WEIGHTS, STATS, CONTRACT = "config.yaml", "model.safetensors", "action_stats.json", "contract.json"
VOCABULARY_HEAD = "backbone.unembed.weight"  # what only co-training needs, in families that do not tie it
BACKBONE, STATE = "backbone", "training_state"


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved config as YAML."""
    OmegaConf.save(OmegaConf.structured(config), path)


def load_config(path: Path) -> TrainConfig:
    """Read a config written by `save_config`, typed and checked again."""
    node: Any = OmegaConf.load(path)
    schema = OmegaConf.structured(TrainConfig)
    for group in ("backbone", "head", "data"):
        schema[group] = _typed(group, node[group].name)
    for name, part in (node.data.get("parts") or {}).items():
        schema.data.parts[name] = _typed("data", part.name)
    config = OmegaConf.to_object(OmegaConf.merge(schema, node))
    assert isinstance(config, TrainConfig)
    return config


def _typed(group: str, name: str) -> Any:
    return OmegaConf.structured(SCHEMAS.get(f"{group}/{name}", SCHEMAS[f"{group}/base"]))


def save_policy(folder: Path, config: TrainConfig, policy: VLAPolicy, stats: dict[str, Statistics]) -> None:
    """Write what rollout needs: the policy can be rebuilt from `folder` without the original VLM's files."""
    save_config(config, folder / CONFIG)
    contracts = {part.name: asdict(part.contract) for part in parts_of(config.data)}
    (folder / CONTRACT).write_text(json.dumps(contracts, indent=2) + "\n")
    save_statistics(folder / STATS, stats)
    policy.backbone.save_pretrained(folder / BACKBONE, weights=False)
    save_model(policy, str(folder / WEIGHTS))


def load_policy(folder: Path, **changes: Any) -> tuple[TrainConfig, VLAPolicy, dict[str, Statistics]]:
    """Rebuild the policy of a checkpoint folder, strictly.

    Args:
        folder: a `checkpoints/step_<number>` folder.
        changes: of its backbone's config.

    Raises:
        FileNotFoundError: the folder is not a checkpoint.
        ValueError: the weights do not fit the config.
    """
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"{folder} is not a checkpoint: it has no {WEIGHTS}. Give .../checkpoints/step_<number>."
        )
    config = load_config(folder / CONFIG)
    config = replace(config, backbone=replace(config.backbone, **changes))
    backbone = replace(config.backbone, checkpoint=str(folder / BACKBONE), random_init=True, size=ModelSize.full)
    policy = VLAPolicy.from_config(replace(config, backbone=backbone))
    load_weights(policy, folder)
    return config, policy, load_statistics(folder / STATS)


def merge_checkpoint(folder: Path, target: Path) -> None:
    """Write a checkpoint whose LoRA adapters are part of its float32 weights: it needs no peft, and acts the same.

    Raises:
        FileExistsError: `target` exists.
        ValueError: the checkpoint has no adapters, or merging would change what it does.
    """
    if target.exists():
        raise FileExistsError(f"output_dir={target} exists: choose another, or delete it.")
    config, policy, stats = load_policy(folder, weights=WeightType.fp32)
    if not config.backbone.lora.rank:
        raise ValueError(f"{folder} has no adapters to merge: it was trained with backbone.lora.rank=0.")
    merge_lora(policy.backbone)
    with atomic_folder(target) as unfinished:
        save_policy(unfinished, replace(config, backbone=replace(config.backbone, lora=LoRAConfig())), policy, stats)


def load_weights(policy: VLAPolicy, folder: Path, optional: str | None = None) -> None:
    """Load model.safetensors, every tensor accounted for; that called `optional` may be on one side alone.

    Raises:
        ValueError: names the missing and unexpected tensors.
    """
    try:
        missing, unexpected = load_model(policy, str(folder / WEIGHTS), strict=False)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit this policy: {error}") from error
    wrong = {"missing": sorted({*missing} - {optional}), "unexpected": sorted({*unexpected} - {optional})}
    if any(wrong.values()):
        raise ValueError(f"the weights in {folder} do not fit this policy: {wrong}")


@dataclass(kw_only=True)
class TrainingState:
    """What a run needs besides the weights to go on bit for bit."""

    step: int
    optimizer: dict[str, Any]  # state_dict of the optimizer
    rng: list[dict[str, Tensor]]  # one entry per rank

    def save(self, folder: Path) -> None:
        """Write tensors as safetensors, the rest as JSON."""
        folder.mkdir()
        tensors = {
            f"{index}.{name}": value.contiguous()
            for index, entry in self.optimizer["state"].items()
            for name, value in entry.items()
        }
        save_file(tensors, folder / "optimizer.safetensors")
        for rank, state in enumerate(self.rng):
            save_file(state, folder / f"rng_{rank}.safetensors")
        rest = {"step": self.step, "num_ranks": len(self.rng), "param_groups": self.optimizer["param_groups"]}
        (folder / "state.json").write_text(json.dumps(rest, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> TrainingState:
        """Read what `save` wrote."""
        rest = json.loads((folder / "state.json").read_text())
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(folder / "optimizer.safetensors").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        rng = [load_file(folder / f"rng_{rank}.safetensors") for rank in range(rest["num_ranks"])]
        return cls(step=rest["step"], optimizer={"state": state, "param_groups": rest["param_groups"]}, rng=rng)


def rng_state() -> dict[str, Tensor]:
    """Give this process's random states: torch, its CUDA device, numpy and python."""
    _, words, position, has_gauss, cached = np.random.get_state()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(words, dtype=np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
        "python": torch.tensor(random.getstate()[1], dtype=torch.int64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_state(states: dict[str, Tensor]) -> None:
    """Restore what `rng_state` gave."""
    torch.set_rng_state(states["torch"])
    position, has_gauss, cached = states["numpy_rest"].tolist()
    words = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, int(position), int(has_gauss), cached))
    random.setstate((3, tuple(states["python"].tolist()), None))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill; it becomes `target` when the block ends, or disappears when it fails.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in partial.rglob("*"):
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _sync(target.parent)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) or "I/O error" in str(error):  # safetensors wraps OSError in its own type
            raise OSError(f"could not write {target}: {error}. Earlier checkpoints are untouched.") from error
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoints(run_folder: Path) -> list[Path]:
    """List a run's complete checkpoints, oldest first; half-written ones are not among them."""
    found = (run_folder / "checkpoints").glob("step_*")
    return sorted(path for path in found if re.fullmatch(r"step_\d+", path.name) and (path / WEIGHTS).is_file())


def resolve_checkpoint(path: Path) -> Path:
    """Give the checkpoint folder that `path` means: itself, or the newest one of a run folder.

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


def keep_newest(run_folder: Path, count: int) -> None:
    """Delete all but the newest `count` checkpoints, and what interrupted saves left behind."""
    for path in checkpoints(run_folder)[:-count]:
        shutil.rmtree(path)
    for path in (run_folder / "checkpoints").glob(".*.partial"):
        shutil.rmtree(path, ignore_errors=True)
