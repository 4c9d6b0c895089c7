"""Options of `head=diffusion`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.fields import number
from robovlms.config.schemas import schema
from robovlms.errors import UserError
from robovlms.heads.schemas.denoising import DenoisingHeadConfig


@schema("head/diffusion")
@dataclass(kw_only=True)
class DiffusionHeadConfig(DenoisingHeadConfig):
    """Diffusion over the chunk."""

    num_train_steps: int = number(100, at_least=1)
    eta: float = number(0.0, at_least=0, at_most=1)  # 0: DDIM; 1 and num_steps = num_train_steps: DDPM

    def check(self, option: str) -> None:
        """Refuse more steps than there are noise levels."""
        if self.num_steps > self.num_train_steps:
            raise UserError(
                f"{option}.num_steps={self.num_steps} must be at most {option}.num_train_steps={self.num_train_steps}."
            )
