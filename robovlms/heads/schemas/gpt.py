"""Options of `head=gpt`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.choices import (
    HeadKind,
)
from robovlms.config.fields import check_divides, number
from robovlms.config.policy import HeadConfig
from robovlms.config.schemas import schema


@schema("head/gpt")
@dataclass(kw_only=True)
class GPTHeadConfig(HeadConfig):
    """Transformer policy head."""

    num_layers: int = number(8, at_least=1)
    num_heads: int = number(8, at_least=1)
    dropout: float = number(0.1, at_least=0, below=1)

    @property
    def kind(self) -> HeadKind:
        """Say that it has a memory."""
        return HeadKind.memory

    def check(self, option: str) -> None:
        """Refuse a width that the attention heads do not divide."""
        width, whole = self.hidden_dim * self.num_queries, f"{option}.hidden_dim x {option}.num_queries"
        check_divides(self.num_heads, f"{option}.num_heads", width, whole)
