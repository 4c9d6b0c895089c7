"""Options of `head=fast`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.choices import (
    HeadKind,
)
from robovlms.config.fields import number
from robovlms.config.policy import HeadConfig
from robovlms.config.schemas import schema
from robovlms.errors import UserError


@schema("head/fast")
@dataclass(kw_only=True)
class FastHeadConfig(HeadConfig):
    """Chunks as tokens of their compressed cosine transform."""

    tokenizer: str | None = None  # folder of a published one; unset: fitted to the training set
    vocab_size: int = number(1024, at_least=2)
    scale: float = number(10.0, above=0)  # of the coefficients before they are rounded; larger: finer and longer
    max_tokens: int = number(64, at_least=1)  # of a chunk in rollout

    @property
    def kind(self) -> HeadKind:
        """Say that the VLM writes tokens."""
        return HeadKind.tokens

    def check(self, option: str) -> None:
        """Refuse several queries."""
        if self.num_queries != 1:
            raise UserError(f"{option}.num_queries={self.num_queries}: head=fast asks token by token, set it to 1.")
