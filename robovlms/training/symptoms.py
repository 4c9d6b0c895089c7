"""What a policy that learns nothing of use shows in validation: found early, each kind with what to try.

Two experiments on a few windows: the same with other windows' instructions, and with other windows' pictures. What a
policy reads changes what it does; how much is told in shares of what its actions differ from window to window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from robovlms.actions.checks import Finding, Severity
from robovlms.actions.plan import DataPlan
from robovlms.config.data import gripper_entries
from robovlms.data.base import RobotDataset
from robovlms.data.loading.loader import Collator
from robovlms.data.loading.sampler import Draw
from robovlms.data.splits import evenly_spaced
from robovlms.policy.policy import VLAPolicy
from robovlms.types import Sample

PROBED = 16  # windows of the experiments
# Change of actions, in shares of their spread, up to which an input counts as ignored. Measured with 8 to 64 windows:
# 0.64 to 0.94 of the quickstart's policy, 0.002 to 0.023 of policies whose data had nothing to read there.
IGNORED = 0.05
STILL = 0.05  # standard deviation of a predicted gripper, in shares of the target's, up to which it never moves
MOVES = 10  # targets away from where a gripper mostly is, from which on it is known to move
LANGUAGE, PICTURES = "val/language_effect", "val/picture_effect"

Findings: TypeAlias = dict[str, Finding]
"""By kind."""


class Probe:
    """A few validation windows, evenly spread, as they are and with what others show or are told."""

    def __init__(self, dataset: RobotDataset, collator: Collator, batch_size: int) -> None:
        self._dataset, self._collator, self._batch_size = dataset, collator, batch_size

    @torch.no_grad()
    def measure(self, policy: VLAPolicy) -> dict[str, float]:
        """Return how much other instructions and other pictures change the actions: the root mean square of the change
        in shares of the actions' own spread over the windows, 0 = ignored.

        What cannot be exchanged has no figure: the instruction, where all windows have one. No random number is drawn.
        Processes that share the weights ask equally often.
        """
        size = len(self._dataset)
        windows = [self._dataset[i] for i in evenly_spaced(size, min(PROBED, size)).tolist()]
        was_training = policy.training
        policy.eval()
        chunks, recorded = self._predict(policy, windows)
        spread = root_mean_square(chunks - chunks.mean(0), recorded)
        found = {}
        for name, changed in ((LANGUAGE, _other_instructions(windows)), (PICTURES, _other_pictures(windows))):
            moved, _ = self._predict(policy, changed)
            is_other = torch.tensor([new is not old for new, old in zip(changed, windows, strict=True)])
            if is_other.any() and spread > 0:
                change = root_mean_square((moved - chunks)[is_other], recorded[is_other])
                found[name] = change / spread
        policy.train(was_training)
        return found

    def _predict(self, policy: VLAPolicy, windows: list[Sample]) -> tuple[Float[Tensor, "n k a"], Bool[Tensor, "n a"]]:
        """Return normalised chunks, and which of their entries are recorded."""
        device, chunks, recorded = next(policy.parameters()).device, [], []
        for first in range(0, len(windows), self._batch_size):
            rows = windows[first : first + self._batch_size]
            batch = self._collator([(row, Draw(first + i, first + i)) for i, row in enumerate(rows)]).to(device)
            chunk = policy.predict(batch).float()
            chunks.append(chunk.cpu())
            known = torch.ones_like(chunk[:, 0], dtype=torch.bool) if batch.action_dims is None else batch.action_dims
            recorded.append(known.cpu())
        return torch.cat(chunks), torch.cat(recorded)


def _other_instructions(windows: Sequence[Sample]) -> list[Sample]:
    """Return windows with the next other instruction of their source; unchanged where there is none."""
    found = []
    for place, row in enumerate(windows):
        told = (other.instruction for other in _others(windows, place) if other.instruction != row.instruction)
        found.append(next((replace(row, instruction=text) for text in told), row))
    return found


def _other_pictures(windows: Sequence[Sample]) -> list[Sample]:
    """Return windows with the pictures of another of their source; unchanged where there is none."""
    return [
        next((replace(row, frames=other.frames) for other in _others(windows, i)), row) for i, row in enumerate(windows)
    ]


def _others(windows: Sequence[Sample], place: int) -> Iterator[Sample]:
    """Yield the other windows of a window's source, the one half-way around first."""
    count = len(windows)
    for step in range(count):
        other = (place + count // 2 + step) % count
        if other != place and windows[other].source == windows[place].source:
            yield windows[other]


def root_mean_square(values: Float[Tensor, "n k a"], recorded: Bool[Tensor, "n a"]) -> float:
    """Return it over the recorded entries."""
    chosen = values.square()[recorded[:, None].expand(values.shape)]
    return float(chosen.mean().sqrt()) if len(chosen) else 0.0


def find_symptoms(
    metrics: Mapping[str, float], examples: Mapping[str, np.ndarray], plan: DataPlan, where: str
) -> Findings:
    """Return what a validation says of what a policy has not learned.

    Args:
        metrics: of `validate` and `Probe`; of a mixture the sources are judged one by one.
        examples: of `validate`.
        plan: of the policy's data.
        where: for the messages.
    """
    predicted, target = (examples[name][examples["mask"]] for name in ("predicted", "target"))
    return {
        **unlearned(metrics, where),
        **ignored_inputs(metrics, where, sees_state=bool(plan.proprio_names)),
        **still_grippers(predicted, target, grippers_of(plan.action_names), where),
    }


def grippers_of(names: Sequence[str]) -> dict[str, int]:
    """Return the columns of the grippers, by name."""
    return {names[place]: place for place in gripper_entries(names)}


def unlearned(metrics: Mapping[str, float], where: str) -> Findings:
    """Return for which sources a policy is no better than a constant, by `validate`'s metrics."""
    found = Findings()
    suffix = "/mean_action_rmse"
    prefixes = [name.removesuffix(suffix) for name in metrics if name.endswith(suffix)]
    for prefix in [each for each in prefixes if len(prefixes) == 1 or each != "val"]:
        error, mean = metrics[f"{prefix}/action_rmse"], metrics[f"{prefix}{suffix}"]
        if error >= mean > 0:
            source = prefix.removeprefix("val").removeprefix("/")
            found[f"mean_action {source}".strip()] = _warning(
                f"{source + ': ' if source else ''}the policy is no better than always giving the mean action (root "
                f"mean square error {error:.3g} against {mean:.3g}, normalised)",
                where,
                "Where the training loss falls, it learns the episodes by heart: more episodes, data.augmentation, "
                "backbone.lora or frozen parts. Where it does not, try debug=overfit, then optimizer.lr, and look at "
                "first_batch.png: do pictures, instructions and actions belong together?",
            )
    return found


def ignored_inputs(metrics: Mapping[str, float], where: str, *, sees_state: bool) -> Findings:
    """Return what a policy does not act on, by `Probe`'s metrics; `sees_state`: it has proprioception."""
    found = Findings()
    if metrics.get(LANGUAGE, 1.0) <= IGNORED:
        found["language"] = _warning(
            f"language is ignored: other instructions change the actions by {metrics[LANGUAGE]:.1%} of what they "
            "differ from window to window",
            where,
            "Probably the picture tells the task: record scenes in which several instructions are possible "
            "(collect.contrast_tasks), or train what reads the text (backbone.freeze_text=false, backbone.lora).",
        )
    if metrics.get(PICTURES, 1.0) <= IGNORED:
        acts_on = "proprioception is copied" if sees_state else "pictures are ignored"
        found["pictures"] = _warning(
            f"{acts_on}: other pictures change the actions by {metrics[PICTURES]:.1%} of what they differ from window "
            "to window",
            where,
            ("Hide the state (data.proprio_seen=[]), or start recordings from more places; " if sees_state else "")
            + "look at first_batch.png, and train what sees (backbone.freeze_vision=false, backbone.lora.parts).",
        )
    return found


def still_grippers(
    predicted: Float32[np.ndarray, "n a"], target: Float32[np.ndarray, "n a"], grippers: Mapping[str, int], where: str
) -> Findings:
    """Return which grippers are always predicted alike while their targets move; `grippers`: their columns by name."""
    found = Findings()
    for name, column in grippers.items():
        guess, true = predicted[:, column], target[:, column]
        num_moved = int((np.abs(true - np.median(true)) > 0.25 * np.ptp(true)).sum()) if np.ptp(true) > 0 else 0
        if num_moved >= MOVES and guess.std() <= STILL * true.std():
            found[name] = _warning(
                f"{name} never moves: it is predicted at {np.median(guess):.3g} in all of {len(guess)} steps, and in "
                f"{num_moved} it is recorded away from its usual {np.median(true):.3g}",
                where,
                "Raise head.gripper_weight or train longer; see on the pages of scripts/inspect_data.py whether it "
                "closes where the pictures say so (data.contract.gripper_closed, gripper_open).",
            )
    return found


def _warning(what: str, where: str, to_do: str) -> Finding:
    return Finding(severity=Severity.warning, what=what, where=where, to_do=to_do)
