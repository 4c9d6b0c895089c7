"""Open-loop validation: the loss, and how far the predicted actions are from the targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from robovlms.policy.policy import VLAPolicy
from robovlms.types import Batch

VALIDATION_ACTIONS = "validation_actions.npz"  # predicted and target chunks of the last validation, for plots
MAX_EXAMPLES = 512  # windows whose predicted and target chunks are kept

Examples: TypeAlias = dict[str, np.ndarray]
"""predicted and target "r k a", mask "r k", of the newest frame of each window, normalised."""


@torch.no_grad()
def validate(
    policy: VLAPolicy,
    batches: Iterable[Batch],
    mean_actions: Float[Tensor, "n e"],
    sources: Sequence[str],
    reduce: Callable[[Tensor], Tensor],
    rounds: int = 0,
) -> tuple[dict[str, float], Examples]:
    """Return metrics over all ranks' batches, and this rank's first examples.

    `val/action_error` is the mean absolute error of the newest frame's chunk in normalised units, of all entries but
    binary grippers, `val/action_rmse` the root of its mean square; `val/mean_action_error` and `val/mean_action_rmse`
    are those of always predicting the mean action of the sample's data set. No constant has a smaller root mean square,
    so a policy above that has learned nothing; a constant near the median may have a smaller absolute error. Entries
    that a data set does not record count nowhere. A mixture has all four by source, as `val/<source>/action_error`; a
    source without a sample has none. The loss terms are weighed by their real steps.

    Args:
        mean_actions: each source's mean in the training set, normalised, of all entries but binary grippers, on the
            policy's device.
        sources: their names.
        reduce: sums a tensor over all ranks.
        rounds: how many batches the policy is asked about at least: processes that share its weights ask equally often.
    """
    losses: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}  # "n": summed over the newest frames' real steps, by source
    examples: list[tuple[Tensor, Tensor, Tensor]] = []
    count_asked = 0
    policy.eval()
    for host_batch in batches:
        batch = host_batch.to(mean_actions.device)
        assert batch.actions is not None
        assert batch.action_mask is not None
        (terms, predicted), target, mask = policy.assess(batch), batch.actions[:, -1], batch.action_mask[:, -1]
        count = batch.action_mask.sum()
        _add(losses, {name: value.float() * count for name, value in terms.items()} | {"steps": count.float()})
        _add(errors, _errors(batch, predicted, mean_actions, policy))
        if len(examples) * len(batch) < MAX_EXAMPLES:
            examples.append((predicted.float(), target, mask))
        count_asked += 1
    for _ in range(rounds - count_asked):
        policy.assess(batch)
    policy.train()
    sums = reduce(torch.cat([*(value[None] for value in losses.values()), *errors.values()])).tolist()
    totals = dict(zip(losses, sums[: len(losses)], strict=True))
    steps = totals.pop("steps")
    metrics = {f"val/{name}": total / steps for name, total in totals.items()}
    by_source = torch.tensor(sums[len(losses) :], dtype=torch.float64).reshape(len(errors), len(sources))
    metrics |= _means("val", list(errors), by_source.sum(1).tolist())
    if len(sources) > 1:
        for source, column in zip(sources, by_source.T.tolist(), strict=True):
            metrics |= _means(f"val/{source}", list(errors), column)
    kept = [torch.cat(tensors)[:MAX_EXAMPLES].cpu().numpy() for tensors in zip(*examples, strict=True)]
    return metrics, dict(zip(("predicted", "target", "mask"), kept, strict=True))


def _add(sums: dict[str, Tensor], terms: dict[str, Tensor]) -> None:
    for name, value in terms.items():
        sums[name] = sums.get(name, 0) + value


def _errors(
    batch: Batch, predicted: Float[Tensor, "b k a"], mean_actions: Float[Tensor, "n e"], policy: VLAPolicy
) -> dict[str, Float[Tensor, "n"]]:
    """Sum the errors of the newest frames' real steps by source, and count those steps."""
    assert batch.actions is not None
    assert batch.action_mask is not None
    assert batch.source is not None
    split = policy.head.split
    target, mask = split.continuous(batch.actions[:, -1]), batch.action_mask[:, -1].float()
    action_dims = torch.ones_like(target[:, :1])
    if batch.action_dims is not None:
        action_dims = split.continuous(batch.action_dims)[:, None].float()
    is_source = batch.source[:, None] == torch.arange(len(mean_actions), device=target.device)

    def by_source(steps: Float[Tensor, "b k"]) -> Float[Tensor, "n"]:
        return ((steps * mask).sum(1)[:, None] * is_source).sum(0)

    sums = {"steps": by_source(torch.ones_like(mask))}
    guesses = {"action": split.continuous(predicted), "mean_action": mean_actions[batch.source][:, None]}
    for name, guess in guesses.items():
        error = (guess - target).float() * action_dims
        for kind, values in (("error", error.abs()), ("rmse", error.square())):
            sums[f"{name}_{kind}"] = by_source(values.sum(-1) / action_dims.sum(-1).clamp(min=1))
    return sums


def _means(prefix: str, names: list[str], sums: list[float]) -> dict[str, float]:
    totals = dict(zip(names, sums, strict=True))
    steps = totals.pop("steps")
    means = {f"{prefix}/{name}": total / steps for name, total in totals.items() if steps}
    return means | {name: value**0.5 for name, value in means.items() if name.endswith("_rmse")}
