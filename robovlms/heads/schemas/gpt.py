"""Options of `head=gpt`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.choices import (
    HeadKind,
)
from robovlms.config.policy import HeadConfig


@dataclass(kw_only=True)
class GPTHeadConfig(HeadConfig):
    """Transformer policy head."""

    num_layers: int = 8
    num_heads: int = 8
    dropout: float = 0.1

    @property
    def kind(self) -> HeadKind:
        """Say that it has a memory."""
        return HeadKind.memory
