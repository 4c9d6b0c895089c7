"""Open-loop validation: the loss, and how far the predicted actions are from the taught ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from robovlms.policy import VLAPolicy
from robovlms.types import Batch

MAX_EXAMPLES = 512  # windows whose predicted and taught chunks are kept

Examples: TypeAlias = dict[str, np.ndarray]
"""predicted and taught "r k a", mask "r k", of the newest frame of each window, normalised."""


@torch.no_grad()
def validate(
    policy: VLAPolicy,
    batches: Iterable[Batch],
    mean_actions: Float[Tensor, "n e"],
    parts: Sequence[str],
    reduce: Callable[[Tensor], Tensor],
) -> tuple[dict[str, float], Examples]:
    """Give metrics over all ranks' batches, and this rank's first examples.

    `val/action_error` is the mean absolute arm error of the newest frame's chunk in normalised units, `val/action_rmse`
    the root of its mean square; `val/mean_action_error` and `val/mean_action_rmse` are those of always predicting the
    mean action of the sample's data set. No constant has a smaller root mean square, so a policy above that has learned
    nothing; a constant near the median may have a smaller absolute error. Entries that a data set does not record count
    nowhere. A mixture has all four by part as well, as `val/<part>/action_error`; a part without a sample has none. The
    loss terms are weighed by their real steps.

    Args:
        mean_actions: each part's mean arm action in the training set, normalised, on the policy's device.
        parts: their names.
        reduce: sums a tensor over all ranks.
    """
    losses: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}  # "n": summed over the newest frames' real steps, by part
    examples: list[tuple[Tensor, Tensor, Tensor]] = []
    policy.eval()
    for host_batch in batches:
        batch = host_batch.to(mean_actions.device)
        assert batch.actions is not None
        assert batch.action_mask is not None
        predicted, taught, mask = policy.predict(batch), batch.actions[:, -1], batch.action_mask[:, -1]
        count = batch.action_mask.sum()
        _add(losses, {name: value.float() * count for name, value in policy(batch).items()} | {"steps": count.float()})
        _add(errors, _errors(batch, predicted, mean_actions))
        if len(examples) * len(batch) < MAX_EXAMPLES:
            examples.append((predicted.float(), taught, mask))
    policy.train()
    sums = reduce(torch.cat([*(value[None] for value in losses.values()), *errors.values()])).tolist()
    totals = dict(zip(losses, sums, strict=False))
    steps = totals.pop("steps")
    metrics = {f"val/{name}": total / steps for name, total in totals.items()}
    by_part = torch.tensor(sums[len(losses) :], dtype=torch.float64).reshape(len(errors), len(parts))
    metrics |= _means("val", list(errors), by_part.sum(1).tolist())
    if len(parts) > 1:
        for part, column in zip(parts, by_part.T.tolist(), strict=True):
            metrics |= _means(f"val/{part}", list(errors), column)
    kept = [torch.cat(tensors)[:MAX_EXAMPLES].cpu().numpy() for tensors in zip(*examples, strict=True)]
    return metrics, dict(zip(("predicted", "taught", "mask"), kept, strict=True))


def _add(sums: dict[str, Tensor], terms: dict[str, Tensor]) -> None:
    for name, value in terms.items():
        sums[name] = sums.get(name, 0) + value


def _errors(
    batch: Batch, predicted: Float[Tensor, "b k a"], mean_actions: Float[Tensor, "n e"]
) -> dict[str, Float[Tensor, "n"]]:
    """Sum the errors of the newest frames' real steps by part, and count those steps."""
    assert batch.actions is not None
    assert batch.action_mask is not None
    assert batch.part is not None
    taught, mask = batch.actions[:, -1, :, :-1], batch.action_mask[:, -1].float()
    entries = torch.ones_like(taught[:, :1]) if batch.entries is None else batch.entries[:, None, :-1].float()
    is_part = batch.part[:, None] == torch.arange(len(mean_actions), device=taught.device)

    def by_part(steps: Float[Tensor, "b k"]) -> Float[Tensor, "n"]:
        return ((steps * mask).sum(1)[:, None] * is_part).sum(0)

    sums = {"steps": by_part(torch.ones_like(mask))}
    for name, guess in (("action", predicted[..., :-1]), ("mean_action", mean_actions[batch.part][:, None])):
        error = (guess - taught).float() * entries
        for kind, values in (("error", error.abs()), ("rmse", error.square())):
            sums[f"{name}_{kind}"] = by_part(values.sum(-1) / entries.sum(-1).clamp(min=1))
    return sums


def _means(prefix: str, names: list[str], sums: list[float]) -> dict[str, float]:
    totals = dict(zip(names, sums, strict=True))
    steps = totals.pop("steps")
    means = {f"{prefix}/{name}": total / steps for name, total in totals.items() if steps}
    return means | {name: value**0.5 for name, value in means.items() if name.endswith("_rmse")}
