"""From RoboVLMs' names of tensors to ours."""

from __future__ import annotations

import logging
import re

import torch

from robovlms.backbones.base import Backbone
from robovlms.backbones.checkpoints.conversion import Weights, rename
from robovlms.policy.released.flamingo import flamingo_weights

logger = logging.getLogger(__name__)

DECODERS = [
    (r"act_head\.actions\.mlp\.(\d+\..*)", r"head.arm.\1"),
    (r"act_head\.gripper\.mlp\.(\d+\..*)", r"head.gripper.\1"),
    (r"action_token", r"head.query"),
]
BLOCK, OURS = r"act_head\.gpt\.h\.(\d+)\.", r"head.blocks.\1."
HEADS = {
    "lstm": [(r"act_head\.rnn\.(.*)", r"head.lstm.\1")],
    "mlp": [(r"act_head\.mlp\.(\d+\..*)", r"head.mlp.\1")],
    "gpt": [
        (r"act_head\.fc\.(weight|bias)", r"head.project.\1"),
        (r"act_head\.gpt\.wpe\.weight", r"head.position"),
        (BLOCK + r"attn\.c_attn\.(weight|bias)", OURS + r"self_attn.in_proj_\2"),
        (BLOCK + r"attn\.c_proj\.(weight|bias)", OURS + r"self_attn.out_proj.\2"),
        (BLOCK + r"mlp\.c_fc\.(weight|bias)", OURS + r"linear1.\2"),
        (BLOCK + r"mlp\.c_proj\.(weight|bias)", OURS + r"linear2.\2"),
        (BLOCK + r"ln_([12])\.(weight|bias)", OURS + r"norm\2.\3"),
        (r"act_head\.gpt\.ln_f\.(weight|bias)", r"head.norm.\1"),
    ],
}
CONV1D = r"head\.blocks\.\d+\.(?:self_attn\.in_proj_weight|self_attn\.out_proj\.weight|linear[12]\.weight)"
KOSMOS = [(r"backbone\.((?:text_model\.model|vision_model|image_to_text_projection)\..*)", r"backbone.model.\1")]
PALIGEMMA = [
    (r"backbone\.vision_tower\.vision_model\.(.*)", r"backbone.model.vision_tower.\1"),
    (r"backbone\.(multi_modal_projector\..*)", r"backbone.model.\1"),
    (r"backbone\.language_model\.model\.(.*)", r"backbone.model.language_model.\1"),
]
VLMS = {"kosmos": KOSMOS, "paligemma": PALIGEMMA}
UNUSED = [  # vocabulary heads, tables that are computed, an auxiliary loss of training
    r"backbone\.(?:text_model|language_model)\.lm_head\.weight",
    r".*\.(?:position_ids|inv_freq|embed_positions\.weights|attn\.masked_bias)",
    r"act_head\.gpt\.h\.\d+\.attn\.bias",
    r"clip_norm_head\..*",
]


def convert(weights: Weights, backbone: Backbone, family: str, head: str) -> Weights:
    """Return a policy's weights, in float32, under our names.

    Args:
        weights: under RoboVLMs' names.
        backbone: whose they shall be.
        family: of the VLM, by RoboVLMs' name.
        head: its name here.

    Raises:
        UserError: weights that have no place in our policy; lists them.
    """
    rules, total = [*HEADS[head], *DECODERS], len(weights)
    if family == "flamingo":
        weights = flamingo_weights(weights, backbone)
        rules.append((r"(backbone\.model\..*)", r"\1"))
    else:
        rules += VLMS[family]
    renamed = rename(weights, rules, drop=UNUSED)
    logger.info(
        "%d tensors of RoboVLMs' become %d; the others are vocabulary heads, computed tables and second names",
        total, len(renamed),
    )  # fmt: skip
    turned = {
        key: (value.T if re.fullmatch(CONV1D, key) else value).float().contiguous() for key, value in renamed.items()
    }
    if head == "gpt" and "head.project.weight" not in turned:  # features as wide as the head enter it as they are
        width = len(turned["head.norm.weight"])
        turned |= {"head.project.weight": torch.eye(width), "head.project.bias": torch.zeros(width)}
    if family == "flamingo":  # it has no query
        turned["head.query"] = torch.zeros(backbone.hidden_dim)
    if family == "paligemma" and "head.query" in turned:  # Gemma scales what it reads, ours only the text
        turned["head.query"] = turned["head.query"] * backbone.hidden_dim**0.5
    return turned
