"""What flow and diffusion heads share."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.policy import HeadConfig


@dataclass(kw_only=True)
class DenoisingHeadConfig(HeadConfig):
    """A small transformer that carries noise to the chunk."""

    num_layers: int = 4
    num_heads: int = 8
    dropout: float = 0.0
    num_steps: int = 10  # from noise to action
