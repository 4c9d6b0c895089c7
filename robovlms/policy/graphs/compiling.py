"""torch.compile of a policy: in place, so that names of weights, checkpoints and hooks stay as they are."""

from __future__ import annotations

from typing import TypeGuard

from torch import nn

from robovlms.config.choices import CompileMode
from robovlms.policy.policy import VLAPolicy

BACKEND = "inductor"


def compile_policy(policy: VLAPolicy, mode: CompileMode) -> None:
    """Let a policy's forward, or the backbone's layers, be compiled when they first run.

    Sizes that change, such as the text's, are made dynamic at their second value, so that a few graphs are enough for
    all batches. What a graph cannot hold (an LSTM) is left to run as it is, between graphs.
    """
    if mode is CompileMode.model:
        policy.compile(backend=BACKEND)
    elif mode is CompileMode.layers:
        for layer in repeated_layers(policy.backbone):
            layer.compile(backend=BACKEND)


def repeated_layers(module: nn.Module) -> list[nn.Module]:
    """Return the layers that a model has several of, the outermost ones: alike ones share a graph."""
    found: list[nn.Module] = []
    for child in module.children():
        found += child if are_layers(child) else repeated_layers(child)
    return found


def are_layers(module: nn.Module) -> TypeGuard[nn.ModuleList]:
    """Whether a module is a list of several modules that are called, which lists are not."""
    if not isinstance(module, nn.ModuleList) or len(module) < 2:
        return False
    return not any(isinstance(layer, nn.ModuleList) for layer in module)
