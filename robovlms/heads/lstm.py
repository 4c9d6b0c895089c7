"""The paper's best head: an LSTM over the window, then one decoder for the arm and one for the gripper."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robovlms.heads.base import HeadSizes, RegressionHead
from robovlms.heads.layers.decoders import start_xavier
from robovlms.heads.schemas.lstm import LSTMHeadConfig
from robovlms.registry import HEADS


@HEADS.register("lstm")
class LSTMHead(RegressionHead):
    """Zero initial state at the first frame of the window, in training and in rollout.

    A window that moves begins with another frame every time. In rollout a state is therefore kept for each beginning,
    and all of them take one step a frame, as a batch, where the window would be run over again.

    Source: RoboVLMs policy_head/base_policy.py, LSTMDecoder (4 layers, hidden 1024).
    """

    carries_state = True

    def __init__(self, config: LSTMHeadConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        q = config.num_queries
        self.lstm = nn.LSTM(
            sizes.feature_dim * q, config.hidden_dim * q, config.num_layers, dropout=config.dropout, batch_first=True
        )
        start_xavier(self)  # the decoders; the LSTM itself has no linear layers

    def fuse(self, features: Float[Tensor, "b w f"]) -> Float[Tensor, "b w g"]:
        """Run the LSTM over the window."""
        return self._run(features)[0]

    def new_state(self) -> Float[Tensor, "z g"]:
        """Return zeros: the hidden vectors of the layers, then their cells."""
        return self.query.new_zeros(2 * self.lstm.num_layers, self.lstm.hidden_size)

    def advance(self, features: Float[Tensor, "n q d"], state: Float[Tensor, "n z g"]) -> Float[Tensor, "n z g"]:
        """Run one step."""
        start = tuple(each.contiguous() for each in state.transpose(0, 1).chunk(2))
        _, end = self._run(features.flatten(1)[:, None], start)
        return torch.cat(end).transpose(0, 1)

    def act_on(self, state: Float[Tensor, "b z g"], source: Int64[Tensor, "b"] | None = None) -> Float[Tensor, "b k a"]:
        """Decode the last layer's hidden vector."""
        return self.choose(state[:, self.lstm.num_layers - 1], source)

    def _run(
        self, features: Float[Tensor, "b w f"], state: tuple[Tensor, ...] | None = None
    ) -> tuple[Float[Tensor, "b w g"], tuple[Tensor, Tensor]]:
        """Return the last layer's vectors, and what the layers end with; on a CPU in float32, since many have no LSTM
        in bfloat16.
        """
        if features.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                return self.lstm(features.float(), state)  # type: ignore[no-any-return]
        return self.lstm(features, state)  # type: ignore[no-any-return]
