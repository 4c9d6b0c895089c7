"""FAST: a chunk's discrete cosine transform, rounded, as text in a vocabulary of byte pairs (arXiv:2501.09747).

Its files are a Hugging Face tokenizer (tokenizer.json) and processor_config.json with scale and min_token, as published
tokenizers have them; their Python code is not needed and not run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from scipy import fft
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from robovlms.errors import UserError

MAX_PAIR = 10_000  # characters of a token


class FastTokenizer:
    """Chunks to token ids and back; the error is the rounding's, at most sqrt(k) / (2 * scale) an entry."""

    def __init__(self, tokenizer: Any, scale: float, min_token: int) -> None:
        self.tokenizer, self.scale, self.min_token = tokenizer, scale, min_token
        self.vocab_size: int = tokenizer.get_vocab_size()

    @classmethod
    def load(cls, folder: Path) -> FastTokenizer:
        """Read a published folder.

        Raises:
            FileNotFoundError: a file is missing.
        """
        for name in ("tokenizer.json", "processor_config.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder / name} does not exist: head.tokenizer must be the folder of a FAST tokenizer, or null, "
                    "which fits one to the training set."
                )
        return cls.from_json(
            (folder / "tokenizer.json").read_text(encoding="utf-8"),
            (folder / "processor_config.json").read_text(encoding="utf-8"),
        )

    @classmethod
    def from_json(cls, tokenizer: str, processor: str) -> FastTokenizer:
        """Read the two files' text."""
        from tokenizers import Tokenizer

        values = json.loads(processor)
        return cls(Tokenizer.from_str(tokenizer), float(values["scale"]), int(values["min_token"]))

    @classmethod
    def fit(cls, chunks: Sequence[Float[np.ndarray, "k _a"]], vocab_size: int, scale: float) -> FastTokenizer:
        """Fit byte pairs to normalised chunks, which may differ in their entries.

        Raises:
            UserError: the rounded coefficients alone need more tokens than `vocab_size`.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        rows = [coefficients(chunk, scale) for chunk in chunks]
        min_token = min(int(row.min()) for row in rows)
        texts = [to_text(row, min_token) for row in rows]
        levels = max(int(row.max()) for row in rows) - min_token + 1
        if levels > vocab_size:
            raise UserError(
                f"head.vocab_size={vocab_size} is too small for {levels} coefficients: lower head.scale={scale}."
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, show_progress=False, max_token_length=MAX_PAIR,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer, scale, min_token)

    def to_json(self) -> tuple[str, str]:
        """Return the text of both files."""
        return self.tokenizer.to_str(), json.dumps({"scale": self.scale, "min_token": self.min_token})

    def encode(self, chunks: Sequence[Float[np.ndarray, "k _a"]]) -> list[list[int]]:
        """Return every chunk's ids; coefficients below `min_token` are raised to it."""
        texts = [to_text(coefficients(chunk, self.scale), self.min_token) for chunk in chunks]
        return [encoding.ids for encoding in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: list[int], chunk_size: int, action_dim: int) -> tuple[Float32[np.ndarray, "k a"], bool]:
        """Return the chunk that ids mean, and whether they mean one: missing coefficients are zeros, too many
        are cut off.
        """
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        row = np.array([ord(letter) for letter in text], np.int64) + self.min_token
        count = chunk_size * action_dim
        is_whole = len(row) == count and "\ufffd" not in text
        row = np.where(np.abs(row) < MAX_COEFFICIENT, row, 0)[:count]
        filled = np.concatenate([row, np.zeros(count - len(row), np.int64)]).reshape(chunk_size, action_dim)
        return fft.idct(filled / self.scale, axis=0, norm="ortho").astype(np.float32), is_whole


@dataclass(frozen=True)
class FastEncoder:
    """Writes the chunks of a batch; small, for it travels to loader processes."""

    tokenizer: FastTokenizer
    end: int  # the token that ends a chunk

    def __call__(
        self,
        actions: Float32[Tensor, "b w k a"],
        mask: Bool[Tensor, "b w k"],
        action_dims: Bool[Tensor, "b a"] | None = None,
    ) -> Int64[Tensor, "b w q"]:
        """Return every chunk's tokens, of the entries that its data records alone, and the end token; then -1."""
        b, w = mask.shape[:2]
        chunks = hold(actions, mask).double().numpy()
        recorded = np.ones((b, actions.shape[-1]), bool) if action_dims is None else action_dims.numpy()
        written = [chunk[:, places] for row, places in zip(chunks, recorded, strict=True) for chunk in row]
        rows = [torch.tensor([*ids, self.end]) for ids in self.tokenizer.encode(written)]
        return pad_sequence(rows, batch_first=True, padding_value=-1).view(b, w, -1)


MAX_COEFFICIENT = 10_000  # beyond it a decoded letter is no coefficient


def to_text(row: Any, min_token: int) -> str:
    """Write rounded coefficients as letters, time first."""
    return "".join(map(chr, np.maximum(row.flatten() - min_token, 0).tolist()))


def coefficients(chunk: Float[np.ndarray, "k _a"], scale: float) -> Any:
    """Return the rounded coefficients of the orthonormal DCT-II over time, "k a"."""
    return np.rint(fft.dct(chunk, axis=0, norm="ortho") * scale).astype(np.int64)


def hold(actions: torch.Tensor, mask: torch.Tensor) -> Float[torch.Tensor, "b w k a"]:
    """Repeat every chunk's last real action over its padding, so that padding decides nothing."""
    last = (mask.sum(-1, keepdim=True) - 1).clamp(min=0)
    place = torch.minimum(torch.arange(mask.shape[-1], device=mask.device).expand(mask.shape), last)
    return actions.gather(2, place[..., None].expand(actions.shape))
