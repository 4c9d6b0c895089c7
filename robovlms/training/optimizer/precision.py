"""`precision=bf16`: a backbone that is stored and computes in bfloat16, and the float32 weights behind it.

The optimizer changes float32 masters, so that steps below 0.4 % of a weight are not lost, and checkpoints keep them, so
that a run may be resumed in any other precision; `optimizer.rounding` has ways without masters. What costs little stays
float32 and is computed under autocast: the head, proprioception, and every buffer (rotary frequencies, position tables,
statistics).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robovlms.config.choices import Precision
from robovlms.config.training import Rounding
from robovlms.policy.checkpoint import load_weights
from robovlms.policy.policy import VLAPolicy


class MasterWeights:
    """The float32 weights behind a policy's bfloat16 ones; without any, every parameter is its own.

    `policy.state_dict()` has the masters in place of what was rounded.
    """

    def __init__(self) -> None:
        self._masters: dict[nn.Parameter, nn.Parameter] = {}  # of what is trained, by what the policy computes with
        self._frozen: dict[nn.Parameter, Tensor] = {}  # on the host: what rounding would lose

    @classmethod
    def round(cls, policy: VLAPolicy, rounding: Rounding = Rounding.masters) -> MasterWeights:
        """Round the backbone's weights to bfloat16 and return what they were; from now on it computes in bfloat16.

        Frozen weights that were published in bfloat16 lose nothing and are not kept, and of trained ones nothing is
        where the optimizer rounds by itself.
        """
        found, backbone = cls(), policy.backbone
        for parameter in backbone.parameters():
            if not parameter.is_floating_point():
                continue
            whole = parameter.data.float()
            parameter.data = whole.bfloat16()
            if parameter.requires_grad:
                if rounding is Rounding.masters:
                    found._masters[parameter] = nn.Parameter(whole)
            elif not torch.equal(parameter.data.float(), whole):
                found._frozen[parameter] = whole.cpu()
        compute_in_bf16(policy)
        policy.register_state_dict_post_hook(  # type: ignore[no-untyped-call]
            partial(found._put_masters)  # torch marks what it is given
        )
        return found

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return what the optimizer changes in place of a parameter."""
        return self._masters.get(parameter, parameter)

    def drop(self) -> None:
        """Forget the masters: somebody else holds them, in parts."""
        self._masters.clear()

    def collect_gradients(self) -> None:
        """Move the gradients to the masters, before they are clipped."""
        found = [(low, low.grad) for low in self._masters if low.grad is not None]
        if found:
            gradients = [torch.empty_like(self._masters[low]) for low, _ in found]
            torch._foreach_copy_(gradients, [gradient for _, gradient in found])
            for (low, _), gradient in zip(found, gradients, strict=True):
                self._masters[low].grad, low.grad = gradient, None

    @torch.no_grad()
    def copy_back(self) -> None:
        """Round the masters into the policy, after the optimizer's step."""
        if self._masters:
            torch._foreach_copy_(list(self._masters), list(self._masters.values()))

    def _put_masters(self, policy: nn.Module, state: dict[str, Any], *_: Any) -> None:
        for name, parameter in policy.named_parameters(remove_duplicate=False):
            if parameter in self._masters:
                state[name] = self._masters[parameter].detach()
            elif parameter in self._frozen:
                state[name] = self._frozen[parameter]


def load_masters(policy: VLAPolicy, precision: Precision, resume_from: Path | None) -> None:
    """Load a policy's weights from the checkpoint to resume, if any, in the digits that its masters need.

    What is trained is float32 before it is rounded, whatever it was stored in (`backbone.weights`): masters are whole.

    Raises:
        DamagedCheckpointError: the checkpoint's file cannot be read.
        UserError: its weights are of another policy.
    """
    if precision is Precision.bf16:
        for parameter in policy.backbone.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if resume_from is not None:
        load_weights(policy, resume_from)


def master_weights(
    policy: VLAPolicy, precision: Precision, rounding: Rounding, resume_from: Path | None
) -> MasterWeights:
    """Load a policy's weights (`load_masters`) and store them as a precision wants them."""
    load_masters(policy, precision, resume_from)
    return MasterWeights.round(policy, rounding) if precision is Precision.bf16 else MasterWeights()


def compute_in_bf16(policy: VLAPolicy) -> None:
    """Have a policy's backbone, whose weights are bfloat16, compute in it throughout, without autocast.

    What comes of a float32 table (positions) is rounded where it meets the tokens; the table itself is not.
    """
    policy.backbone.computes_bf16 = True
    for module in policy.backbone.modules():
        tables = [buffer for buffer in module.buffers(recurse=False) if buffer.is_floating_point() and buffer.ndim]
        if tables:
            module.register_forward_hook(_round_output)


def _round_output(_: nn.Module, __: Any, output: Any) -> Any:
    if isinstance(output, Tensor) and output.dtype is torch.float32:
        return output.bfloat16()
    return output
