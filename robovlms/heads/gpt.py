"""A causal transformer over the window, then one decoder for the arm and one for the gripper."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robovlms.heads.base import HeadSizes, RegressionHead
from robovlms.heads.schemas.gpt import GPTHeadConfig
from robovlms.registry import HEADS

STD = 0.02  # of a block's weights at the start


@HEADS.register("gpt")
class GPTHead(RegressionHead):
    """GPT-2's blocks (pre-norm, GELU by tanh, learned positions) over one token per frame, started as GPT-2 is.

    Position 0 is the oldest frame of the window, in training and in rollout, also before the window is full.
    Source: RoboVLMs policy_head/base_policy.py, GPTDecoder, and trajectory_gpt2.py (8 layers, 8 heads; works for one
    query per frame only).
    """

    def __init__(self, config: GPTHeadConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        width = config.hidden_dim * config.num_queries
        self.project = nn.Linear(sizes.feature_dim * config.num_queries, width)
        if self.project.in_features == width:  # where upstream has no such layer
            nn.init.eye_(self.project.weight)
            nn.init.zeros_(self.project.bias)
        self.position = nn.Parameter(torch.randn(sizes.window_size, width) * STD)
        self.dropout = nn.Dropout(config.dropout)
        # Not nn.TransformerEncoder: it copies one block, so that all of them start with the same weights.
        self.blocks = nn.ModuleList(gpt2_block(width, config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)

    def fuse(self, features: Float[Tensor, "b w f"]) -> Float[Tensor, "b w g"]:
        """Let every frame attend to itself and the earlier ones."""
        w = features.shape[1]
        later = torch.ones(w, w, dtype=torch.bool, device=features.device).triu(1)
        x = self.dropout(self.project(features) + self.position[:w])
        for block in self.blocks:
            x = block(x, src_mask=later, is_causal=True)
        return self.norm(x)


def gpt2_block(width: int, config: GPTHeadConfig) -> nn.TransformerEncoderLayer:
    """Return a block of GPT-2: dropout on the attention and on both outputs, but none within the two-layer MLP."""
    gelu = partial(F.gelu, approximate="tanh")
    block = nn.TransformerEncoderLayer(
        width, config.num_heads, 4 * width, config.dropout, gelu, batch_first=True, norm_first=True
    )
    block.dropout.p = 0.0
    for name, parameter in block.named_parameters():
        if not name.startswith("norm"):
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.normal_(parameter, std=STD)
    return block
