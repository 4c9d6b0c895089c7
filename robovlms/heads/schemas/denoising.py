"""What flow and diffusion heads share."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.choices import ArmLoss
from robovlms.config.fields import check_divides, number
from robovlms.config.policy import HeadConfig
from robovlms.errors import UserError


@dataclass(kw_only=True)
class DenoisingHeadConfig(HeadConfig):
    """A small transformer that carries noise to the chunk."""

    num_layers: int = number(4, at_least=1)
    num_heads: int = number(8, at_least=1)
    dropout: float = number(0.0, at_least=0, below=1)
    num_steps: int = number(10, at_least=1)  # from noise to action

    def check(self, option: str) -> None:
        """Refuse another loss than squared error, or a width that the attention heads do not divide."""
        if self.loss is not ArmLoss.mse:
            raise UserError(
                f"head={self.name} learns a mean, for which only squared error is right: set {option}.loss=mse, not "
                f"{self.loss}."
            )
        check_divides(2 * self.num_heads, f"2 * {option}.num_heads", self.hidden_dim, f"{option}.hidden_dim")
