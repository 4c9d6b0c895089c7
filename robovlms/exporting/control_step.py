"""One control step as a function of tensors alone: pictures, text and memory in, actions and the new memory out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.plan import Source
from robovlms.config.choices import HeadKind, Structure
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.exporting.names import FRAMES, NEXT
from robovlms.heads.base import Read
from robovlms.heads.denoising import DenoisingHead
from robovlms.policy.policy import FeatureReader, VLAPolicy
from robovlms.types import Batch

POSSIBLE = (
    "What can be exported: structure=policy_head with head=lstm, gpt, mlp, flow or diffusion, and structure=one_step "
    "with head=mlp, flow, diffusion or tokens with head.parallel=true."
)


class ControlStep(nn.Module):
    """What `PolicyEngine.predict` computes for sessions that show one new frame each.

    The memory of `policy_head` is the features of the last w frames, the oldest first, anything behind the newest, and
    how many there are. Rows may be of any age.
    """

    def __init__(
        self, policy: VLAPolicy, source: Source, normalizer: ActionNormalizer, window_size: int, shape: tuple[int, int]
    ) -> None:
        """Take a policy in evaluation, and whose actions it gives.

        Args:
            policy: one that `check_exportable` accepts.
            source: whose actions, views and proprioception.
            normalizer: of its actions.
            window_size: frames that it remembers.
            shape: height and width of the pictures, px.
        """
        super().__init__()
        self.policy, self.source, self.normalizer = policy, source, normalizer
        self.window_size, self.shape = window_size, shape
        self.remembers = policy.structure is Structure.policy_head
        self.views = [view for view in reversed(policy.processor.views) if view in source.views]

    def example(self, b: int, num_words: int) -> dict[str, Tensor]:
        """Return inputs of the right names, shapes and types, with an empty memory."""
        head, inputs = self.policy.head, dict[str, Tensor]()
        for view in self.views:
            inputs[FRAMES + view] = torch.zeros(b, *self.shape, 3, dtype=torch.uint8)
        inputs["text_ids"] = torch.ones(b, num_words, dtype=torch.long)
        inputs["text_mask"] = torch.ones(b, num_words, dtype=torch.bool)
        if self.policy.proprio is not None:
            inputs["proprio"] = torch.zeros(b, len(self.source.proprio_dims))
        if isinstance(head, DenoisingHead):
            inputs["noise"] = head.noise.repeat(b, 1, 1)
        if self.remembers:
            q, d = head.queries(1, 1).shape[2:]
            inputs["features"] = torch.zeros(b, self.window_size, q, d)
            inputs["count"] = torch.zeros(b, dtype=torch.long)
        return inputs

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `actions` "b k a" in environment units, and the new memory under its names behind `NEXT`."""
        batch, noise = self._batch(inputs), inputs.get("noise")
        reader, b = FeatureReader(self.policy, self.policy.encode(batch), batch), batch.text_ids.shape[0]
        if not self.remembers:
            return {"actions": self._environment(self._act(reader, b, 1, batch, None, noise))}
        newest = reader(self.policy.head.queries(b, 1))[:, 0]
        features, count = remember(inputs["features"], inputs["count"], newest)
        chunk = self._act(lambda queries: features, b, self.window_size, batch, count, noise)
        return {"actions": self._environment(chunk), f"{NEXT}features": features, f"{NEXT}count": count}

    def _batch(self, inputs: Mapping[str, Tensor]) -> Batch:
        """Return windows of one frame; a view that the source lacks is black and masked."""
        b, views, size = inputs["text_ids"].shape[0], self.policy.processor.views, self.policy.processor.image_spec.size
        black = torch.zeros(b, 1, size, size, 3, dtype=torch.uint8)
        proprio = None
        if self.policy.proprio is not None:
            proprio = self.policy.proprio.mean.repeat(b, 1)  # what a source does not record is read as the mean
            proprio[:, self.source.proprio_dims] = inputs["proprio"]
        return Batch(
            frames={view: inputs[FRAMES + view][:, None] if view in self.views else black for view in views},
            text_ids=inputs["text_ids"],
            text_mask=inputs["text_mask"],
            action_dims=repeated(b, [i in self.source.action_dims for i in range(self.normalizer.action_dim)]),
            view_mask=repeated(b, [view in self.views for view in views]),
            proprio=None if proprio is None else proprio[:, None],
        )

    def _act(self, read: Read, b: int, w: int, batch: Batch, lengths: Tensor | None, noise: Tensor | None) -> Tensor:
        head = self.policy.head
        if isinstance(head, DenoisingHead) and noise is not None:
            return head.denoise(read(head.queries(b, w)), noise[:, None], None, batch.action_dims, lengths)
        return head.act(read, b, w, None, batch.action_dims, lengths)

    def _environment(self, chunk: Float[Tensor, "b k a"]) -> Float[Tensor, "b k _a"]:
        return self.normalizer.denormalize(chunk)[..., self.source.action_dims]


def check_exportable(config: TrainConfig) -> None:
    """Refuse what is not one forward of fixed length.

    Raises:
        UserError: names the option, why, and what can be exported.
    """
    structure, head = config.structure.name, config.head
    if structure is Structure.interleaved:
        raise UserError(
            f"structure={structure} cannot be exported: what it keeps between control steps grows with the window. "
            f"{POSSIBLE}"
        )
    if head.kind is HeadKind.tokens:
        raise UserError(
            f"head={head.name} cannot be exported: it writes token by token, one pass of the backbone for each. "
            f"{POSSIBLE}"
        )


def repeated(b: int, is_there: list[bool]) -> Bool[Tensor, "b n"] | None:
    """Return a mask of equal rows; None: all is there."""
    return None if all(is_there) else torch.tensor([is_there]).repeat(b, 1)


def remember(
    features: Float[Tensor, "b w q d"], count: Int64[Tensor, "b"], newest: Float[Tensor, "b q d"]
) -> tuple[Float[Tensor, "b w q d"], Int64[Tensor, "b"]]:
    """Put a frame behind the `count` that every row has; a row that is full forgets its oldest."""
    w = features.shape[1]
    is_full = (count == w)[:, None, None, None]
    moved = torch.where(is_full, torch.cat([features[:, 1:], features[:, :1]], dim=1), features)
    count = (count + 1).clamp(max=w)
    is_newest = torch.arange(w) == (count - 1)[:, None]
    return torch.where(is_newest[:, :, None, None], newest[:, None], moved), count
