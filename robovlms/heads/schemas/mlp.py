"""Options of `head=mlp`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.policy import HeadConfig
from robovlms.config.schemas import schema


@schema("head/mlp")
@dataclass(kw_only=True)
class MLPHeadConfig(HeadConfig):
    """Each frame decoded on its own."""

    plain: bool = False  # three linear layers of hidden_dim instead of upstream's projection and decoders
