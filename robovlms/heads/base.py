"""The action-head contract, and what the continuous heads share: decoders of arm and grippers and their loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from robovlms.config.choices import ArmLoss, QueryInit
from robovlms.config.policy import HeadConfig
from robovlms.errors import UserError
from robovlms.heads.layers.decoders import ActionDecoder, OwnProjectors
from robovlms.heads.layers.split import ActionSplit
from robovlms.types import Batch, Encoder, Losses

Read: TypeAlias = Callable[..., Tensor]
"""Queries "b w q d" to features "b w q d": one call of the backbone.

`read(queries, behind=True)` asks queries that stand behind all that were asked before; for heads with `reads_again`.
"""

Decoded: TypeAlias = tuple[Float[Tensor, "b w k e"], Float[Tensor, "b w k o"] | None]
"""An arm's normalised numbers, and the logits of grippers that are open or closed; None: there are none."""


@dataclass(frozen=True, kw_only=True)
class HeadSizes:
    """What a head learns from the rest of the policy."""

    feature_dim: int  # hidden size of the backbone
    action_dim: int  # grippers included
    binary: tuple[int, ...]  # where in an action the grippers stand that are open or closed; the others are numbers
    window_size: int
    chunk_size: int
    num_sources: int = 1  # of the data
    embedding_rms: float = 0.0  # size of the backbone's text tokens, for head.query_init=embedding
    vocabulary: Callable[[int], Tensor] | None = None  # gives the last n words' vectors, "n d", the last word first


@dataclass(kw_only=True)
class Targets:
    """What the chunks of a batch are to be, and what of it counts.

    A number that a sample's data does not record is 0 here, whatever was given, so that it can move nothing.
    """

    actions: Float[Tensor, "b w k a"]  # normalised
    mask: Bool[Tensor, "b w k"]  # False = padding
    action_dims: Bool[Tensor, "b a"] | None = None  # False = not recorded by the sample's data; None: all are
    seeds: Int64[Tensor, "b"] | None = None  # of each sample's random numbers, for heads that draw any
    source: Int64[Tensor, "b"] | None = None  # of the data, by number, for heads with projectors of each source
    ids: Int64[Tensor, "b w q"] | None = None  # the chunks as a head's `encoder` writes them; -1 = padding

    def __post_init__(self) -> None:
        if self.action_dims is not None:
            self.actions = self.actions.masked_fill(~self.action_dims[:, None, None], 0)

    @classmethod
    def of(cls, batch: Batch) -> Targets:
        """Return those of a batch, which must have actions."""
        assert batch.actions is not None
        assert batch.action_mask is not None
        return cls(
            actions=batch.actions,
            mask=batch.action_mask,
            action_dims=batch.action_dims,
            seeds=batch.seeds,
            source=batch.source,
            ids=batch.target_ids,
        )


class Prefix(NamedTuple):
    """What is already decided of the coming chunk."""

    actions: Tensor  # "b k a", normalised, or of a head's own numbers "b k e"; anything where the weight is 0
    weight: Tensor  # "b k": 1 = kept as it is, 0 = free


def newest(frames: Shaped[Tensor, "b w *rest"], lengths: Int64[Tensor, "b"] | None) -> Shaped[Tensor, "b *rest"]:
    """Return what belongs to every row's newest frame."""
    if lengths is None:
        return frames[:, -1]
    return frames[torch.arange(frames.shape[0], device=frames.device), lengths - 1]


def start_query(config: HeadConfig, sizes: HeadSizes) -> nn.Parameter:
    """Return a learned query as `head.query_init` wants it to start."""
    if config.query_init is QueryInit.zero:
        return nn.Parameter(torch.zeros(sizes.feature_dim))
    return nn.Parameter(sizes.embedding_rms * torch.randn(sizes.feature_dim))


def vocabulary_rows(sizes: HeadSizes, count: int) -> Float[Tensor, "n d"]:
    """Return the vectors that `count` words of a head's own start from; random ones without a vocabulary."""
    if sizes.vocabulary is not None:
        return sizes.vocabulary(count)
    return (sizes.embedding_rms or 1.0) * torch.randn(count, sizes.feature_dim)


class ActionHead(nn.Module, ABC):
    """Says what to ask the backbone (`queries`), and turns its answer into a loss or into actions."""

    supports_prefix: bool = False  # whether a chunk can be made to go on from the last one
    needs_chunks: bool = False  # whether it wants `calibrate` before the first step
    carries_state: bool = False  # whether it is an LSTM, say, that goes on from frame to frame: `advance`
    reads_again: bool = False  # whether `act` asks queries that depend on the answers before
    acts_on_host: bool = False  # whether `act` looks at numbers on the way, so that no CUDA graph is made of it
    chunk_size: int  # k

    @abstractmethod
    def __init__(self, config: HeadConfig, sizes: HeadSizes) -> None:
        super().__init__()
        self.split = ActionSplit(sizes.action_dim, sizes.binary)
        self.own = OwnProjectors(sizes.num_sources if config.per_source else 0)

    @abstractmethod
    def queries(self, b: int, w: int, targets: Targets | None = None) -> Float[Tensor, "b w q d"]:
        """Return what the backbone reads at the end of every frame; in training, with the targets at hand."""

    def calibrate(self, chunks: Sequence[Float[np.ndarray, "k _a"]]) -> None:
        """Take what the head needs of the training set's normalised chunks, each of the entries its data records.

        Raises:
            NotImplementedError: it needs nothing (`needs_chunks`).
        """
        raise NotImplementedError

    def encoder(self) -> Encoder | None:
        """Return what turns chunks into `Targets.ids`, if the head learns any: on the host, in loader processes, so it
        is small.
        """
        return None

    def new_state(self) -> Float[Tensor, "z g"]:
        """Return the state of a sequence before its first frame.

        Raises:
            NotImplementedError: the head carries none (`carries_state`).
        """
        raise NotImplementedError

    def advance(self, features: Float[Tensor, "n q d"], state: Float[Tensor, "n z g"]) -> Float[Tensor, "n z g"]:
        """Return the states of sequences after one more frame.

        Raises:
            NotImplementedError: the head carries none (`carries_state`).
        """
        raise NotImplementedError

    def act_on(self, state: Float[Tensor, "b z g"], source: Int64[Tensor, "b"] | None = None) -> Float[Tensor, "b k a"]:
        """Return what `act` does, from the states after the newest frame.

        Raises:
            NotImplementedError: the head carries none (`carries_state`).
        """
        raise NotImplementedError

    @abstractmethod
    def loss(self, features: Float[Tensor, "b w q d"], targets: Targets) -> Losses:
        """Compare the answers to `queries` with the targets; every term is a mean over the real steps, "loss" their
        weighted sum.
        """

    @abstractmethod
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
        """Return the newest frame's chunk: numbers in [-1, 1], binary grippers exactly -1 or +1.

        Args:
            read: called as often as needed.
            b: rows.
            w: frames that are read, of the longest row.
            prefix: for heads with `supports_prefix`.
            action_dims: as in `Targets`; what is given at an entry that is not recorded means nothing.
            lengths: frames of every row, the oldest first; what follows them is padding. None: w.
            source: as in `Targets`.
        """


class RegressionHead(ActionHead):
    """Heads that regress a chunk at every frame: tanh on the arm, a logit for every gripper that is open or closed.

    One learned vector, zero unless the config says otherwise, is repeated `num_queries` times per frame, as upstream
    does. Every position of the window is supervised. A subclass says how features become one vector per frame.

    Source: RoboVLMs policy_head/base_policy.py; loss = arm + 0.01 * gripper, arXiv:2412.14058.
    """

    def __init__(self, config: HeadConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        self.num_queries, self.chunk_size = config.num_queries, sizes.chunk_size
        self.config = config
        self.query = start_query(config, sizes)
        self.arm, self.gripper = self.decoders(partial(ActionDecoder, config.hidden_dim * config.num_queries))

    def decoders(self, make: Callable[[int], nn.Module]) -> tuple[nn.Module, nn.Module | None]:
        """Return the arm's and the grippers' decoder, each `make(outputs)`; None: there is no gripper."""
        arm = make(self.split.num_continuous * self.chunk_size)
        gripper = make(self.split.num_binary * self.chunk_size) if self.split.num_binary else None
        self.own.add("arm", arm)
        self.own.add("gripper", gripper)
        return arm, gripper

    @abstractmethod
    def fuse(self, features: Float[Tensor, "b w f"]) -> Float[Tensor, "b w g"]:
        """Turn each frame's features (and, for recurrent heads, the earlier frames') into one vector per frame."""

    def queries(self, b: int, w: int, targets: Targets | None = None) -> Float[Tensor, "b w q d"]:
        """Repeat the learned vector for every frame."""
        return repeat(self.query, "d -> b w q d", b=b, w=w, q=self.num_queries)

    def decode(self, features: Float[Tensor, "b w q d"], source: Int64[Tensor, "b"] | None = None) -> Decoded:
        """Return the normalised arm actions in [-1, 1] and the grippers' logits (positive: open) of every frame."""
        return self.decide(self.fuse(rearrange(features, "b w q d -> b w (q d)")), source)

    def decide(self, fused: Float[Tensor, "b w g"], source: Int64[Tensor, "b"] | None = None) -> Decoded:
        """Run both decoders."""
        arm = self.own("arm", self.arm(fused), fused, source)
        arm = rearrange(arm.tanh(), "b w (k e) -> b w k e", k=self.chunk_size)
        if self.gripper is None:
            return arm, None
        gripper = self.own("gripper", self.gripper(fused), fused, source)
        return arm, rearrange(gripper, "b w (k o) -> b w k o", k=self.chunk_size)

    def loss(self, features: Float[Tensor, "b w q d"], targets: Targets) -> Losses:
        """Return the arm's and the grippers' terms."""
        return regression_losses(self.config, self.split, *self.decode(features, targets.source), targets)

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
        """Read once and decode the newest frame."""
        fused = self.fuse(rearrange(read(self.queries(b, w)), "b w q d -> b w (q d)"))
        return self.choose(newest(fused, lengths), source)

    def choose(self, fused: Float[Tensor, "b g"], source: Int64[Tensor, "b"] | None) -> Float[Tensor, "b k a"]:
        """Return the chunk of one frame."""
        arm, gripper = self.decide(fused[:, None], source)
        return self.split.join(arm[:, -1].float(), None if gripper is None else gripper[:, -1])


def regression_losses(
    config: HeadConfig,
    split: ActionSplit,
    arm: Float[Tensor, "b w k e"],
    gripper: Float[Tensor, "b w k o"] | None,
    targets: Targets,
) -> Losses:
    """Huber (delta 1), squared or absolute error on the arm plus weighted binary cross-entropy on the grippers' logits.

    Source: RoboVLMs policy_head/base_policy.py; loss = arm + 0.01 * gripper, arXiv:2412.14058.
    """
    error: Callable[..., Tensor] = {  # type: ignore[assignment]
        ArmLoss.huber: F.huber_loss,
        ArmLoss.mse: F.mse_loss,
        ArmLoss.l1: F.l1_loss,
    }[config.loss]
    difference = error(arm.float(), split.continuous(targets.actions), reduction="none")
    return arm_and_gripper(config, split, difference, gripper, targets)


def arm_and_gripper(
    config: HeadConfig,
    split: ActionSplit,
    error: Float[Tensor, "b w k e"],
    gripper: Float[Tensor, "b w k o"] | None,
    targets: Targets,
) -> Losses:
    """Put the arm's error and the grippers' cross-entropy, a mean over those that are recorded, together.

    Both are divided by the number of real steps, also of those without a gripper, so that the shares of micro-batches
    add up to the batch's.
    """
    mask, recorded = targets.mask, targets.action_dims
    arm_loss = masked_mean(weighted_mean(error, config, None if recorded is None else split.continuous(recorded)), mask)
    if gripper is None:
        return {"loss": arm_loss, "arm": arm_loss.detach()}
    is_open = (split.binary(targets.actions) > 0).float()
    entropy = F.binary_cross_entropy_with_logits(gripper.float(), is_open, reduction="none")
    gripper_dims = torch.ones_like(is_open[:, 0, 0]).bool() if recorded is None else split.binary(recorded)
    gripper_loss = masked_mean(mean_of(entropy, gripper_dims), mask)
    is_right = ((gripper > 0) == is_open.bool()).float()
    accuracy = masked_mean(is_right, mask[..., None] & gripper_dims[:, None, None])
    loss = arm_loss + config.gripper_weight * gripper_loss
    return {"loss": loss, "arm": arm_loss, "gripper": gripper_loss, "gripper_accuracy": accuracy.detach()}


def mean_of(values: Float[Tensor, "b w k n"], recorded: Bool[Tensor, "b n"]) -> Float[Tensor, "b w k"]:
    """Average over the entries that every row's data records, 0 where it records none."""
    weights = recorded[:, None, None].float()
    return (values * weights).sum(-1) / weights.sum(-1).clamp(min=1)


def weighted_mean(
    error: Float[Tensor, "b w k e"], config: HeadConfig, action_dims: Bool[Tensor, "b e"] | None = None
) -> Float[Tensor, "b w k"]:
    """Average over the arm's recorded entries, by `head.arm_weights`.

    Raises:
        UserError: there are not as many weights as entries, or one is negative, or all are 0.
    """
    if not config.arm_weights and action_dims is None:
        return error.mean(-1)
    numbers = config.arm_weights or [1.0] * error.shape[-1]
    if len(numbers) != error.shape[-1] or min(numbers) < 0 or sum(numbers) == 0:
        raise UserError(f"head.arm_weights={numbers} must be {error.shape[-1]} numbers of at least 0, not all 0.")
    # Filled in on the device: the host would wait for a copy.
    weights = torch.stack([error.new_full((), number) for number in numbers])
    if action_dims is not None:
        weights = (weights * action_dims)[:, None, None]
    return (error * weights).sum(-1) / weights.sum(-1).clamp(min=1e-6)


def masked_mean(values: Float[Tensor, "*n"], mask: Bool[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Average the real steps; 0 when there is none."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)
