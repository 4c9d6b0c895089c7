"""A run's policy and batch at full size without a number in them: nothing is read, downloaded or allocated."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from robovlms.actions.plan import DataPlan
from robovlms.backbones.checkpoints.published import published
from robovlms.config.run import TrainConfig
from robovlms.policy.policy import VLAPolicy
from robovlms.types import Batch

INSTRUCTION_TOKENS = 16  # CALVIN's instructions have 12 to 18 with most tokenizers


@contextmanager
def no_numbers() -> Iterator[None]:
    """Let tensors that are made inside the block have shapes and no memory."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Let nothing be said of models that are only counted."""
    log = logging.getLogger("robovlms.backbones")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def shapes_of(config: TrainConfig) -> VLAPolicy:
    """Return the policy of a run, every parameter and buffer a shape on the meta device.

    A backbone has the sizes of its checkpoint, or, where that is not on this machine, of the published model.
    """
    config = replace(config, backbone=replace(config.backbone, random_init=True))
    plan = DataPlan.of(config.data, config.view.views)
    with quiet(), torch.device("meta"):
        return VLAPolicy.from_config(config, plan, published(config.backbone))


def materialise(policy: VLAPolicy, rounds_backbone: bool) -> None:
    """Replace every parameter and buffer of shapes by one with memory, inside `no_numbers` a pretended one; tied ones
    stay tied.

    Args:
        policy: of shapes.
        rounds_backbone: store the parameters of the backbone in bfloat16.
    """
    low = {id(parameter) for parameter in policy.backbone.parameters()} if rounds_backbone else set()
    made: dict[int, Tensor] = {}
    known: list[Tensor] = []  # keeps ids unique
    for module in policy.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None:
                continue
            if id(tensor) not in made:
                known.append(tensor)
                empty = torch.empty(tensor.shape, dtype=torch.bfloat16 if id(tensor) in low else tensor.dtype)
                is_parameter = isinstance(tensor, nn.Parameter)
                made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
            setattr(module, name, made[id(tensor)])


def make_batch(config: TrainConfig, policy: VLAPolicy, windows: int, action_dim: int) -> Batch:
    """Return a batch of `windows` windows with everything that training puts into one."""
    w, k = config.window.window_size, config.window.chunk_size
    size = policy.processor.image_spec.size
    views = policy.processor.views
    proprio = None if policy.proprio is None else torch.zeros(windows, w, len(policy.proprio.mean))
    return Batch(
        frames={view: torch.zeros(windows, w, size, size, 3, dtype=torch.uint8) for view in views},
        text_ids=torch.zeros(windows, INSTRUCTION_TOKENS, dtype=torch.long),
        text_mask=torch.ones(windows, INSTRUCTION_TOKENS, dtype=torch.bool),
        actions=torch.zeros(windows, w, k, action_dim),
        action_mask=torch.ones(windows, w, k, dtype=torch.bool),
        proprio=proprio,
        shifts={view: torch.zeros(windows, w, 2, dtype=torch.long) for view in views},
        source=torch.zeros(windows, dtype=torch.long),
        seeds=torch.zeros(windows, dtype=torch.long),
    )
