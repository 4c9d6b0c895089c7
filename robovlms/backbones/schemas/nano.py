"""Options of `backbone=nano`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.fields import check_divides, number
from robovlms.config.policy import BackboneConfig
from robovlms.config.schemas import schema
from robovlms.errors import UserError


@schema("backbone/nano")
@dataclass(kw_only=True)
class NanoBackboneConfig(BackboneConfig):
    """Sizes of the embedded few-million-parameter VLM."""

    image_size: int = number(at_least=16)  # px, a multiple of 16
    hidden_dim: int = number(at_least=2)
    num_layers: int = number(at_least=1)
    num_heads: int = number(at_least=1)

    def check(self, option: str) -> None:
        """Refuse sizes that do not divide."""
        if self.image_size % 16:
            raise UserError(f"{option}.image_size={self.image_size} must be a multiple of 16.")
        check_divides(2 * self.num_heads, f"2 * {option}.num_heads", self.hidden_dim, f"{option}.hidden_dim")
