"""Options of `head=tokens`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.choices import (
    HeadKind,
)
from robovlms.config.fields import number
from robovlms.config.policy import HeadConfig
from robovlms.config.schemas import schema
from robovlms.errors import UserError


@schema("head/tokens")
@dataclass(kw_only=True)
class TokensHeadConfig(HeadConfig):
    """Actions as words at the tail of the vocabulary."""

    num_bins: int = number(256, at_least=2)  # edges from -1 to 1
    parallel: bool = False  # all slots of a chunk in one pass, instead of token by token
    discrete: bool = True  # false: the slots' values are regressed with head.loss (needs parallel)

    @property
    def kind(self) -> HeadKind:
        """Say how the VLM writes the chunk."""
        return HeadKind.slots if self.parallel else HeadKind.tokens

    def check(self, option: str) -> None:
        """Refuse several queries, and regression of what is written token by token."""
        if self.num_queries != 1:
            raise UserError(
                f"{option}.num_queries={self.num_queries}: head=tokens asks for every entry itself, set it to 1."
            )
        if not self.discrete and not self.parallel:
            raise UserError(
                f"{option}.discrete=false needs {option}.parallel=true: what is written by token is discrete."
            )
