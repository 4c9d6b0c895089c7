"""Actions as tokens: every entry of the chunk is one of `num_bins` words at the tail of the VLM's vocabulary.

Source: RT-2, arXiv:2307.15818; OpenVLA, arXiv:2406.09246; RoboVLMs policy_head/action_tokenizer.py. All slots at once:
OpenVLA-OFT, arXiv:2502.19645.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robovlms.heads.base import (
    ActionHead,
    Decoded,
    HeadSizes,
    Prefix,
    Read,
    Targets,
    masked_mean,
    mean_of,
    newest,
    regression_losses,
    start_query,
    vocabulary_rows,
)
from robovlms.heads.layers.decoders import ActionDecoder
from robovlms.heads.schemas.tokens import TokensHeadConfig
from robovlms.registry import HEADS
from robovlms.types import Losses


@HEADS.register("tokens")
class TokensHead(ActionHead):
    """Writes a chunk of k x a tokens, step after step, greedily, choosing among the bins alone.

    `parallel` fills k x a slots in one pass instead, whose queries see each other; `discrete=false` then regresses
    their values. The bins' vectors, in and out, are the head's own and start as those of the vocabulary's tail.
    """

    def __init__(self, config: TokensHeadConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        self.config = config
        self.reads_again = not config.parallel
        self.chunk_size, self.action_dim = sizes.chunk_size, sizes.action_dim
        num_slots = sizes.chunk_size * sizes.action_dim
        self.zero_bin = int(to_bins(torch.zeros(()), config.num_bins))  # the target at what is not recorded
        if config.parallel:
            self.slots = nn.Parameter((sizes.embedding_rms or 1.0) * torch.randn(num_slots, sizes.feature_dim))
        else:
            self.query = start_query(config, sizes)
        if config.discrete:
            rows = vocabulary_rows(sizes, config.num_bins)
            self.unembed = nn.Parameter(rows * (rows.square().mean().sqrt() * sizes.feature_dim**0.5).reciprocal())
            if not config.parallel:
                self.embed = nn.Parameter(rows.clone())
        else:
            self.arm = ActionDecoder(sizes.feature_dim, 1)
            self.gripper = ActionDecoder(sizes.feature_dim, 1) if self.split.num_binary else None

    def queries(self, b: int, w: int, targets: Targets | None = None) -> Float[Tensor, "b w q d"]:
        """Return the slots; or the learned query, and behind it the target tokens but the last."""
        if self.config.parallel:
            return repeat(self.slots, "q d -> b w q d", b=b, w=w)
        first = repeat(self.query, "d -> b w 1 d", b=b, w=w)
        if targets is None:
            return first
        bins = rearrange(to_bins(targets.actions, self.config.num_bins), "b w k a -> b w (k a)")
        return torch.cat([first, self.embed[bins[:, :, :-1]]], dim=2)

    def loss(self, features: Float[Tensor, "b w q d"], targets: Targets) -> Losses:
        """Cross-entropy over the bins, with the arm's and the grippers' accuracy; or the continuous heads' terms."""
        if not self.config.discrete:
            return regression_losses(self.config, self.split, *self._regress(features), targets)
        actions, mask = targets.actions, targets.mask
        recorded = torch.ones_like(actions[:, 0, 0]).bool() if targets.action_dims is None else targets.action_dims
        logits = self._logits(features)
        bins = to_bins(actions, self.config.num_bins)
        entropy = F.cross_entropy(logits.flatten(0, -2), bins.flatten(), reduction="none").view(bins.shape)
        loss = masked_mean(mean_of(entropy, recorded), mask)
        is_right = (logits.argmax(-1) == bins).float()
        decoded = from_bins(logits.argmax(-1), self.config.num_bins)
        arm, grippers = self.split.continuous, self.split.binary
        terms = {"loss": loss, "tokens": loss.detach()}
        terms["arm_accuracy"] = masked_mean(mean_of(arm(is_right), arm(recorded)), mask).detach()
        if self.split.num_binary:
            supervised = mask[..., None] & grippers(recorded)[:, None, None]
            is_decided = ((decoded > 0) == (actions > 0)).float()
            terms["gripper_accuracy"] = masked_mean(grippers(is_decided), supervised).detach()
        terms["arm_l1"] = masked_mean(mean_of(arm((decoded - actions).abs()), arm(recorded)), mask).detach()
        return terms

    def act(
        self,
        read: Read,
        b: int,
        w: int,
        prefix: Prefix | None = None,
        action_dims: Bool[Tensor, "b a"] | None = None,
        lengths: Int64[Tensor, "b"] | None = None,
        source: Int64[Tensor, "b"] | None = None,
    ) -> Float[Tensor, "b k a"]:
        """Read once (`parallel`), or once for every token, each behind the ones before."""
        if self.config.parallel:
            features = read(self.queries(b, w))
            if not self.config.discrete:
                arm, gripper = self._regress(features)
                return self.split.join(newest(arm, lengths), None if gripper is None else newest(gripper, lengths))
            bins = newest(self._logits(features), lengths).argmax(-1)
        else:
            answer = read(self.queries(b, w))
            written: list[Tensor] = []
            for i in range(self.chunk_size * self.action_dim):
                if i:
                    answer = read(self.embed[written[-1]][:, None, None], behind=True)
                token = (answer[:, -1, -1] @ self.unembed.T.float()).argmax(-1)
                written.append(
                    token
                    if action_dims is None
                    else torch.where(action_dims[:, i % self.action_dim], token, self.zero_bin)
                )
            bins = rearrange(torch.stack(written, dim=1), "b (k a) -> b k a", k=self.chunk_size)
        actions = from_bins(bins, self.config.num_bins)
        return self.split.join(self.split.continuous(actions), self.split.binary(actions))

    def _logits(self, features: Float[Tensor, "b w q d"]) -> Float[Tensor, "b w k a bins"]:
        logits = features.float() @ self.unembed.T.float()
        return rearrange(logits, "b w (k a) bins -> b w k a bins", k=self.chunk_size)

    def _regress(self, features: Float[Tensor, "b w q d"]) -> Decoded:
        slots = rearrange(features, "b w (k a) d -> b w k a d", k=self.chunk_size)
        arm = self.arm(self.split.continuous(slots, dim=-2))[..., 0].tanh().float()
        if self.gripper is None:
            return arm, None
        return arm, self.gripper(self.split.binary(slots, dim=-2))[..., 0].float()


def to_bins(actions: Float[Tensor, "*n"], num_bins: int) -> Int64[Tensor, "*n"]:
    """Return the number of the interval between `num_bins` edges from -1 to 1; 1 itself is the last number.

    The vocabulary id of number i is V0 - 1 - i. Source: RoboVLMs action_tokenizer.py, `np.digitize`.
    """
    edges = torch.linspace(-1, 1, num_bins, device=actions.device)
    return torch.bucketize(actions.float().clamp(-1, 1), edges, right=True) - 1


def from_bins(bins: Int64[Tensor, "*n"], num_bins: int) -> Float[Tensor, "*n"]:
    """Return the centre of the interval: at most 1 / (num_bins - 1) from what was meant."""
    return -1 + (2 * bins.clamp(max=num_bins - 2) + 1) / (num_bins - 1)
