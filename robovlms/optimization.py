"""Optimizer and learning rate: both pure functions of the config, so that nothing but the step needs to be restored."""

from __future__ import annotations

import math

import torch
from torch import nn

from robovlms.config import OptimizerConfig, ScheduleConfig, ScheduleName


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Give AdamW (fused on CUDA) over the trainable parameters.

    Weight decay goes to matrices and kernels only: biases, norms, embeddings, learned positions and queries are spared.

    Raises:
        ValueError: nothing is trainable, or the optimizer is unknown.
    """
    if config.name != "adamw":
        raise ValueError(f"optimizer.name={config.name!r} does not exist: choose optimizer=adamw.")
    decayed, spared = [], []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                is_matrix = parameter.ndim >= 2 and name.startswith("weight") and not isinstance(module, nn.Embedding)
                (decayed if is_matrix else spared).append(parameter)
    if not decayed and not spared:
        raise ValueError("no parameter is trainable: set one of backbone.freeze_* to false.")
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    on_cuda = any(parameter.is_cuda for parameter in decayed + spared)
    beta1, beta2 = config.betas
    return torch.optim.AdamW(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps, fused=on_cuda or None)


def learning_rate(step: int, config: ScheduleConfig, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Give the learning rate of optimizer step `step`, counted from 0: linear warm-up, then constant or cosine."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if config.name is ScheduleName.constant:
        return peak
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return peak * (config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2)
