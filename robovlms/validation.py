"""Open-loop validation: the loss, and how far the predicted actions are from the taught ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    policy: VLAPolicy, batches: Iterable[Batch], mean_action: Float[Tensor, "e"], reduce: Callable[[Tensor], Tensor]
) -> tuple[dict[str, float], Examples]:
    """Give metrics over all ranks' batches, and this rank's first examples.

    `val/action_error` is the mean absolute arm error of the newest frame's chunk in normalised units, `val/action_rmse`
    the root of its mean square; `val/mean_action_error` and `val/mean_action_rmse` are those of always predicting
    `mean_action`. No constant has a smaller root mean square, so a policy above that has learned nothing; a constant
    near the median may have a smaller absolute error. The loss terms are weighed by their real steps.

    Args:
        mean_action: the training set's mean arm action, normalised, on the policy's device.
        reduce: sums a tensor over all ranks.
    """
    device = mean_action.device
    sums: dict[str, Tensor] = {}
    examples: list[tuple[Tensor, Tensor, Tensor]] = []
    policy.eval()
    for host_batch in batches:
        batch = host_batch.to(device)
        assert batch.actions is not None
        assert batch.action_mask is not None
        predicted, taught, mask = policy.predict(batch), batch.actions[:, -1], batch.action_mask[:, -1]
        count = batch.action_mask.sum()
        terms = {f"val/{name}": value.float() * count for name, value in policy(batch).items()}
        terms |= {"steps": count.float(), "newest_steps": mask.sum().float()}
        for name, guess in (("action", predicted[..., :-1]), ("mean_action", mean_action)):
            error = (guess - taught[..., :-1]).float()
            terms[f"val/{name}_error"] = error.abs().mean(-1)[mask].sum()
            terms[f"val/{name}_rmse"] = error.square().mean(-1)[mask].sum()
        sums = {name: sums.get(name, 0) + value for name, value in terms.items()}
        if len(examples) * len(batch) < MAX_EXAMPLES:
            examples.append((predicted.float(), taught, mask))
    policy.train()
    totals = dict(zip(sums, reduce(torch.stack(list(sums.values()))).tolist(), strict=True))
    steps, newest = totals.pop("steps"), totals.pop("newest_steps")
    metrics = {name: total / (newest if "action_" in name else steps) for name, total in totals.items()}
    metrics |= {name: value**0.5 for name, value in metrics.items() if name.endswith("_rmse")}
    parts = [torch.cat(part)[:MAX_EXAMPLES].cpu().numpy() for part in zip(*examples, strict=True)]
    return metrics, dict(zip(("predicted", "taught", "mask"), parts, strict=True))
