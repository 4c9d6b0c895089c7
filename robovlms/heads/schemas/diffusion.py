"""Options of `head=diffusion`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.heads.schemas.denoising import DenoisingHeadConfig


@dataclass(kw_only=True)
class DiffusionHeadConfig(DenoisingHeadConfig):
    """Diffusion over the chunk."""

    num_train_steps: int = 100
    eta: float = 0.0  # 0: DDIM; 1 and num_steps = num_train_steps: DDPM
