"""A head without memory: every frame's features are decoded on their own."""

from __future__ import annotations

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from robovlms.heads.base import HeadSizes, RegressionHead
from robovlms.heads.layers.decoders import start_xavier
from robovlms.heads.schemas.mlp import MLPHeadConfig
from robovlms.registry import HEADS


@HEADS.register("mlp")
class MLPHead(RegressionHead):
    """in -> in / 2 -> hidden, then the decoders (RoboVLMs policy_head/base_policy.py, FCDecoder); or three layers."""

    def __init__(self, config: MLPHeadConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        in_dim, out_dim = sizes.feature_dim * config.num_queries, config.hidden_dim * config.num_queries
        if config.plain:
            self.mlp = nn.Sequential()
            self.arm, self.gripper = self.decoders(partial(three_layers, in_dim, config.hidden_dim))
            return
        self.mlp = nn.Sequential(nn.Linear(in_dim, in_dim // 2), nn.ReLU(), nn.Linear(in_dim // 2, out_dim))
        start_xavier(self)

    def fuse(self, features: Float[Tensor, "b w f"]) -> Float[Tensor, "b w g"]:
        """Project each frame on its own."""
        return self.mlp(features)


def three_layers(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Return in -> hidden -> hidden -> out with ReLU between."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, hidden_dim), nn.ReLU(),
        nn.Linear(hidden_dim, out_dim),
    )  # fmt: skip
