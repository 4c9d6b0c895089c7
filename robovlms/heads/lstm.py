"""The paper's best head: an LSTM over the window, then one decoder for the arm and one for the gripper."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robovlms.heads.base import HeadSizes, RegressionHead, start_xavier
from robovlms.heads.schemas.lstm import LSTMHeadConfig
from robovlms.registry import HEADS


@HEADS.register("lstm")
class LSTMHead(RegressionHead):
    """Zero initial state at the first frame of the window, in training and in rollout.

    Source: RoboVLMs policy_head/base_policy.py, LSTMDecoder (4 layers, hidden 1024).
    """

    def __init__(self, config: LSTMHeadConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        q = config.num_queries
        self.lstm = nn.LSTM(
            sizes.feature_dim * q, config.hidden_dim * q, config.num_layers, dropout=config.dropout, batch_first=True
        )
        start_xavier(self)  # the decoders; the LSTM itself has no linear layers

    def fuse(self, features: Float[Tensor, "b w f"]) -> Float[Tensor, "b w g"]:
        """Run the LSTM over the window; on a CPU in float32, since many have no LSTM in bfloat16."""
        if features.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                return self.lstm(features.float())[0]
        return self.lstm(features)[0]
