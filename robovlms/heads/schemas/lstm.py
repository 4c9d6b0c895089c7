"""Options of `head=lstm`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.choices import (
    HeadKind,
)
from robovlms.config.fields import number
from robovlms.config.policy import HeadConfig
from robovlms.config.schemas import schema


@schema("head/lstm")
@dataclass(kw_only=True)
class LSTMHeadConfig(HeadConfig):
    """Recurrent policy head."""

    num_layers: int = number(4, at_least=1)
    dropout: float = number(0.0, at_least=0, below=1)

    @property
    def kind(self) -> HeadKind:
        """Say that it has a memory."""
        return HeadKind.memory
