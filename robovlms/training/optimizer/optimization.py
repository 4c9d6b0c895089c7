"""Optimizer and learning rate: both pure functions of the config, so that nothing but the step needs to be restored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from robovlms.config.choices import Duration, Moments, ScheduleName
from robovlms.config.training import OptimizerConfig, Rounding, ScheduleConfig, TrainerConfig
from robovlms.errors import UserError
from robovlms.training.optimizer.adamw import LowPrecisionAdamW


def make_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    weight_of: Mapping[nn.Parameter, nn.Parameter] | None = None,
    seed: int = 0,
) -> torch.optim.Optimizer:
    """Return AdamW, fused where moments and what it changes are float32, over the trainable parameters, by name.

    Args:
        model: whose parameters are trained.
        config: of the optimizer.
        weight_of: what is changed in place of a parameter; one that is missing is another process's.
        seed: of the random numbers that moments and weights are rounded by.

    Weight decay goes to matrices and kernels only: biases, norms, embeddings, learned positions and queries are spared.

    Raises:
        UserError: nothing is trainable, or the optimizer is unknown.
    """
    if config.name != "adamw":
        raise UserError(f"optimizer.name={config.name!r} does not exist: choose optimizer=adamw.")
    decayed, spared = trained_parameters(model)
    groups = []
    for named, weight_decay in ((decayed, config.weight_decay), (spared, 0.0)):
        found = [
            (name, parameter if weight_of is None else weight_of[parameter])
            for name, parameter in named.items()
            if weight_of is None or parameter in weight_of
        ]
        groups += [{"params": found, "weight_decay": weight_decay}] if found else []
    beta1, beta2 = config.betas
    options: dict[str, Any] = {"lr": config.lr, "betas": (beta1, beta2), "eps": config.eps}
    if config.moments is Moments.fp32 and config.rounding is Rounding.masters:
        return torch.optim.AdamW(groups, fused=True, **options)
    return LowPrecisionAdamW(groups, moments=config.moments, rounding=config.rounding, seed=seed, **options)


def trained_parameters(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Return the trainable parameters with and without weight decay, by name, each once.

    Raises:
        UserError: there are none.
    """
    decayed: dict[str, nn.Parameter] = {}
    spared: dict[str, nn.Parameter] = {}
    listed: set[int] = set()  # of parameters; modules may share one
    for place, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in listed:
                listed.add(id(parameter))
                is_matrix = parameter.ndim >= 2 and name.startswith("weight") and not isinstance(module, nn.Embedding)
                (decayed if is_matrix else spared)[f"{place}.{name}".removeprefix(".")] = parameter
    if not decayed and not spared:
        raise UserError("no parameter is trainable: set one of backbone.freeze_* to false.")
    return decayed, spared


def named_weights(optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """Return what an optimizer of `make_optimizer` changes, by the policy's name of it, in its order."""
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The run's durations in optimizer steps, known once the data set's size is."""

    warmup: int
    total: int
    log_every: int
    validate_every: int
    save_every: int

    @classmethod
    def resolve(cls, schedule: ScheduleConfig, trainer: TrainerConfig, steps_per_epoch: int) -> Steps:
        """Turn epochs into steps; everything but the warm-up is at least one.

        Raises:
            UserError: the warm-up outlasts the run.
        """
        texts = vars(schedule) | vars(trainer)
        texts["validate_every"] = trainer.validate_every or schedule.total
        steps = {field.name: Duration.parse(texts[field.name]).steps(steps_per_epoch) for field in fields(cls)}
        found = cls(**{name: max(count, int(name != "warmup")) for name, count in steps.items()})
        if found.warmup > found.total:
            raise UserError(
                f"schedule.warmup={schedule.warmup} ({found.warmup} steps) is longer than schedule.total="
                f"{schedule.total} ({found.total} steps): shorten it, e.g. 'schedule.warmup=0 step'."
            )
        return found


def learning_rate(step: int, config: ScheduleConfig, peak: float, steps: Steps) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0: linear warm-up, then constant or cosine."""
    if step < steps.warmup:
        return peak * (step + 1) / steps.warmup
    if config.name is ScheduleName.constant:
        return peak
    progress = min(1.0, (step - steps.warmup) / max(1, steps.total - steps.warmup))
    return peak * (config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2)


def check_finite(weights: Mapping[str, Tensor], step: int) -> None:
    """Refuse trained weights whose 2-norm is not a finite float32: they are lost, whatever the last loss was.

    Raises:
        UserError: says how many, and names one.
    """
    norms = {name: torch.linalg.vector_norm(each.detach(), dtype=torch.float32) for name, each in weights.items()}
    lost = [name for name, norm in norms.items() if not norm.isfinite()]
    if lost:
        raise UserError(
            f"{len(lost)} of {len(weights)} tensors are no longer finite at step {step}, e.g. {lost[0]}: nothing "
            "saved. Lower optimizer.lr, and go on from the newest checkpoint, which is from before, or start again."
        )
