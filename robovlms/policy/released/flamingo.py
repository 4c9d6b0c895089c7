"""RoboVLMs' Flamingo: open_clip's vision tower and open_flamingo's decoder, under OpenFlamingo's published names."""

from __future__ import annotations

import re

from robovlms.backbones.base import Backbone
from robovlms.backbones.checkpoints.conversion import Weights, rename
from robovlms.backbones.families._flamingo_shared import EMBEDDING, CrossAttendingDecoder, convert
from robovlms.errors import UserError

LAYER, OURS = r"transformer\.resblocks\.(\d+)\.", r"vision_model.encoder.layers.\1."
CLIP = [  # open_clip's names to those of transformers
    (r"class_embedding", r"vision_model.embeddings.class_embedding"),
    (r"conv1\.weight", r"vision_model.embeddings.patch_embedding.weight"),
    (r"positional_embedding", r"vision_model.embeddings.position_embedding.weight"),
    (r"ln_pre\.(.*)", r"vision_model.pre_layrnorm.\1"),
    (r"ln_post\.(.*)", r"vision_model.post_layernorm.\1"),
    (LAYER + r"ln_([12])\.(.*)", OURS + r"layer_norm\2.\3"),
    (LAYER + r"attn\.(q|k|v|out)_proj\.(.*)", OURS + r"self_attn.\2_proj.\3"),
    (LAYER + r"mlp\.c_fc\.(.*)", OURS + r"mlp.fc1.\2"),
    (LAYER + r"mlp\.c_proj\.(.*)", OURS + r"mlp.fc2.\2"),
]
VISION, DECODER, AGAIN = "vision_encoder.visual.", "backbone.", "model."
OWN = re.compile(rf"(?:perceiver|lang_encoder\.gated_cross_attn_layers)\..*|{EMBEDDING}")
UNUSED = r"vision_encoder\.(?!visual\.).*|.*\.(?:gated_cross_attn_layer|old_decoder_blocks)\..*"
"""CLIP's text half; and what open_flamingo names twice."""


def flamingo_weights(weights: Weights, backbone: Backbone) -> Weights:
    """Return the VLM's weights as our policy names them; those of the head stay as they are.

    Raises:
        UserError: weights that have no place in our model, or a second name that holds other numbers; lists them.
    """
    assert isinstance(backbone, CrossAttendingDecoder)
    parts: dict[str, Weights] = {"clip": {}, "language": {}, "": {}}
    rest: Weights = {}
    for key, value in _once(weights).items():
        bare = key.removeprefix(DECODER).replace(".decoder_layer.", ".")
        if re.fullmatch(UNUSED, key):
            continue
        if key.startswith(VISION):
            parts["clip"][key.removeprefix(VISION)] = value
        elif OWN.fullmatch(f"lang_encoder.{bare}") and key.startswith(DECODER):
            parts[""][f"lang_encoder.{bare}"] = value
        elif OWN.fullmatch(key):
            parts[""][key] = value
        elif key.startswith(DECODER):
            parts["language"][bare] = value
        else:
            rest[key] = value
    parts["clip"] = rename(_split(parts["clip"]), CLIP, drop=["proj"])
    vlm = convert(parts, backbone.model.config)
    return rest | {f"backbone.model.{key}": value for key, value in vlm.items()}


def _once(weights: Weights) -> Weights:
    """Leave out `model.`, RoboVLMs' second name of `backbone.`."""
    second = {key: DECODER + key.removeprefix(AGAIN) for key in weights if key.startswith(AGAIN)}
    other = [key for key, first in second.items() if first not in weights or not weights[key].equal(weights[first])]
    if other:
        raise UserError(
            f"{len(other)} weights named {AGAIN}* differ from those named {DECODER}*, e.g. {other[0]}: the file mixes "
            "two models."
        )
    return {key: value for key, value in weights.items() if key not in second}


def _split(clip: Weights) -> Weights:
    """Cut the joint projection of queries, keys and values."""
    split: Weights = {}
    for key, value in clip.items():
        place, joint, kind = key.partition("in_proj_")
        if joint:
            split |= {f"{place}{name}_proj.{kind}": each for name, each in zip("qkv", value.chunk(3), strict=True)}
        else:
            split[key] = value
    return split
