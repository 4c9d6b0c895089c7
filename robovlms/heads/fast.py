"""FAST (arXiv:2501.09747): the chunk as a few tokens of its compressed cosine transform, written by the VLM."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn

from robovlms.errors import UserError
from robovlms.heads.base import ActionHead, HeadSizes, Prefix, Read, Targets, masked_mean, start_query, vocabulary_rows
from robovlms.heads.fast_tokenizer import FastEncoder, FastTokenizer
from robovlms.heads.schemas.fast import FastHeadConfig
from robovlms.registry import HEADS
from robovlms.types import Losses

log = logging.getLogger(__name__)


@HEADS.register("fast")
class FastHead(ActionHead):
    """Writes token after token until the end token; a chunk costs 10 to 40 of them instead of k x a.

    The tokens are words of the head's own, which start as the tail of the VLM's vocabulary. The tokenizer is read from
    `head.tokenizer`, or fitted to the training set, and travels with the weights.
    """

    needs_chunks = reads_again = acts_on_host = True

    def __init__(self, config: FastHeadConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        self.config, self.chunk_size, self.action_dim = config, sizes.chunk_size, sizes.action_dim
        self.query = start_query(config, sizes)
        rows = vocabulary_rows(sizes, config.vocab_size + 1)  # the last is the end token
        self.embed = nn.Parameter(rows.clone())
        self.unembed = nn.Parameter(rows * (rows.square().mean().sqrt() * sizes.feature_dim**0.5).reciprocal())
        self.end = config.vocab_size
        self.num_malformed = 0  # chunks written that were no chunk
        self.tokenizer: FastTokenizer | None = None
        if config.tokenizer is not None:
            self._take(FastTokenizer.load(Path(config.tokenizer).expanduser()))

    def calibrate(self, chunks: Sequence[Float[np.ndarray, "k _a"]]) -> None:
        """Fit the tokenizer, unless one was given."""
        if self.tokenizer is None:
            self._take(FastTokenizer.fit(chunks, self.config.vocab_size, self.config.scale))
            lengths = [len(ids) for ids in self._tokenizer.encode(chunks)]
            log.info("fast: %d tokens fitted to %d chunks, %.1f a chunk", self.end, len(chunks), np.mean(lengths))

    def get_extra_state(self) -> Tensor:
        """Return the tokenizer's files as bytes, for the checkpoint."""
        texts = [] if self.tokenizer is None else list(self.tokenizer.to_json())
        return torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8).clone()

    def set_extra_state(self, state: Tensor) -> None:
        """Take the tokenizer from a checkpoint."""
        if texts := json.loads(bytes(state.cpu().tolist()).decode()):
            self._take(FastTokenizer.from_json(*texts))

    def encoder(self) -> FastEncoder:
        """Return the tokenizer, and the end token that is put behind every chunk."""
        return FastEncoder(self._tokenizer, self.end)

    def queries(self, b: int, w: int, targets: Targets | None = None) -> Float[Tensor, "b w q d"]:
        """Return the learned query, and behind it the target tokens without the end token."""
        first = self.query.expand(b, w, 1, -1)
        if targets is None:
            return first
        return torch.cat([first, self.embed[self._target_tokens(targets)[:, :, :-1]]], dim=2)

    def loss(self, features: Float[Tensor, "b w q d"], targets: Targets) -> Losses:
        """Cross-entropy and the share that is right: means over a chunk's tokens, which each of its real steps has."""
        ids = self._target_tokens(targets)
        assert targets.ids is not None
        is_token = targets.ids >= 0
        logits = features.float() @ self.unembed.T.float()
        entropy = F.cross_entropy(logits.flatten(0, -2), ids.flatten(), reduction="none").view(ids.shape)

        def mean(values: Float[Tensor, "b w q"]) -> Tensor:
            of_chunks = (values * is_token).sum(-1, keepdim=True) / is_token.sum(-1, keepdim=True)
            return masked_mean(of_chunks.expand(targets.mask.shape), targets.mask)

        loss = mean(entropy)
        return {"loss": loss, "tokens": loss.detach(), "token_accuracy": mean((logits.argmax(-1) == ids).float())}

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
        """Write greedily until every row has ended, at most `head.max_tokens`; zeros fill what is no whole chunk."""
        answer = read(self.queries(b, w))
        written: list[Tensor] = []
        ended = torch.zeros(b, dtype=torch.bool, device=answer.device)
        for _ in range(self.config.max_tokens):
            token = (answer[:, -1, -1].float() @ self.unembed.T.float()).argmax(-1)
            ended = ended | (token == self.end)
            written.append(torch.where(ended, self.end, token))
            if ended.all():
                break
            answer = read(self.embed[token][:, None, None], behind=True)
        rows = [[token for token in row if token != self.end] for row in torch.stack(written, dim=1).tolist()]
        actions = self._decode(rows, self._recorded(b, action_dims)).to(answer.device)
        return self.split.join(self.split.continuous(actions).clamp(-1, 1), self.split.binary(actions))

    @property
    def _tokenizer(self) -> FastTokenizer:
        if self.tokenizer is None:
            raise RuntimeError("head=fast has no tokenizer yet: call calibrate with the training set's chunks.")
        return self.tokenizer

    def _take(self, tokenizer: FastTokenizer) -> None:
        if tokenizer.vocab_size > self.end:
            raise UserError(
                f"head.tokenizer has {tokenizer.vocab_size} tokens, head.vocab_size={self.end}: set them to the same."
            )
        self.tokenizer = tokenizer

    def _recorded(self, b: int, action_dims: Bool[Tensor, "b a"] | None) -> list[Bool[np.ndarray, "a"]]:
        """Return which entries every row's data records, on the host."""
        return [np.ones(self.action_dim, bool)] * b if action_dims is None else list(action_dims.cpu().numpy())

    def _decode(self, rows: list[list[int]], recorded: list[Bool[np.ndarray, "a"]]) -> Float32[Tensor, "b k a"]:
        """Return the chunks that tokens mean, 0 at entries that are not recorded; count the malformed ones."""
        actions = np.zeros((len(rows), self.chunk_size, self.action_dim), np.float32)
        for chunk, row, places in zip(actions, rows, recorded, strict=True):
            chunk[:, places], is_whole = self._tokenizer.decode(row, self.chunk_size, int(places.sum()))
            self.num_malformed += not is_whole
        return torch.from_numpy(actions)

    def _target_tokens(self, targets: Targets) -> Int64[Tensor, "b w q"]:
        """Return every chunk's tokens, end token included and again as padding."""
        assert targets.ids is not None, "head=fast needs its targets as its encoder writes them"
        return torch.where(targets.ids < 0, self.end, targets.ids)
