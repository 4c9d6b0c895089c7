"""Options of `backbone=nano`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.choices import (
    MISSING,
)
from robovlms.config.policy import BackboneConfig


@dataclass(kw_only=True)
class NanoBackboneConfig(BackboneConfig):
    """Sizes of the embedded few-million-parameter VLM."""

    image_size: int = MISSING  # px, a multiple of 16
    hidden_dim: int = MISSING
    num_layers: int = MISSING
    num_heads: int = MISSING
