"""What quantisation changes: chunks for synthetic observations, before and after it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from robovlms.actions.plan import Source
from robovlms.heads.layers.split import ActionSplit
from robovlms.policy.policy import VLAPolicy
from robovlms.types import Observation

EPISODES, STEPS = 4, 8  # of every source
INSTRUCTIONS = ["open the drawer", "pick up the red block", "push the button on the left", "close it"]
CELLS = 8  # patches of one colour in a row of a picture
NOISE = 16  # largest difference of a pixel from its patch


class ActionChange(NamedTuple):
    """How far two sets of chunks are apart, normalised: the arm is in -1 to 1, another decision of a gripper is 2."""

    largest: float
    arm_largest: float
    arm_mean: float
    grippers: int  # decisions that are others
    chunks: int

    def __str__(self) -> str:
        return (
            f"the arm by up to {self.arm_largest:.3g} (mean {self.arm_mean:.3g}) of a range of 2, and {self.grippers} "
            f"decisions of grippers, in {self.chunks} chunks"
        )


def action_change(before: Float[Tensor, "n k a"], after: Float[Tensor, "n k a"], split: ActionSplit) -> ActionChange:
    """Compare chunks of a head that splits actions so."""
    difference = (after - before).abs()
    arm, grippers = split.continuous(difference), split.binary(difference)
    return ActionChange(
        largest=difference.max().item(),
        arm_largest=arm.max().item() if arm.numel() else 0.0,
        arm_mean=arm.mean().item() if arm.numel() else 0.0,
        grippers=int((grippers > 1).sum()),
        chunks=len(before),
    )


def synthetic_observations(policy: VLAPolicy, source: Source, seed: int) -> list[Observation]:
    """Return the steps of an episode as no robot sees them: coloured patches with noise, always the same for a seed.

    A checkpoint has no frames of its data. Proprioception is drawn from the training set's mean and deviation;
    what no policy sees of it is 0.
    """
    generator = np.random.default_rng(seed)
    size, instruction = policy.processor.image_spec.size, INSTRUCTIONS[seed % len(INSTRUCTIONS)]
    observations = []
    for _ in range(STEPS):
        proprio = np.zeros(len(source.proprio_names), np.float32)
        if policy.proprio is not None:
            mean, std = (
                value[source.proprio_dims].cpu().numpy() for value in (policy.proprio.mean, policy.proprio.std)
            )
            proprio[: len(mean)] = generator.normal(mean, std)
        frames = {view: _patches(generator, size) for view in source.views}
        observations.append(Observation(frames=frames, instruction=instruction, proprio=proprio))
    return observations


def _patches(generator: np.random.Generator, size: int) -> UInt8[np.ndarray, "h x 3"]:
    colors = generator.integers(0, 256, (CELLS, CELLS, 3))
    places = np.arange(size) * CELLS // size
    noise = generator.integers(-NOISE, NOISE + 1, (size, size, 3))
    return (colors[places][:, places] + noise).clip(0, 255).astype(np.uint8)
