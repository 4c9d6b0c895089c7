"""The VLM inside policies that others have trained: pi0 has a PaliGemma, SmolVLA the first layers of a SmolVLM2.

Their checkpoints hold weights alone; config, tokenizer and image processor are the published VLM's. Every tensor has a
place in the VLM or is named as left out. Names: openpi's examples/convert_jax_model_to_pytorch.py, lerobot's
policies/pi0/modeling_pi0.py and policies/smolvla/smolvlm_with_expert.py (and lerobot's of 2025, without `model.`).
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from robovlms.backbones.checkpoints.conversion import Weights, build_converted, read_weights, rename
from robovlms.backbones.checkpoints.loading import load
from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.config.policy import BackboneConfig
from robovlms.errors import UserError

logger = logging.getLogger(__name__)

NORMALIZERS = r"(?:normalize_inputs|normalize_targets|unnormalize_outputs)\..*"
PROJECTIONS = r"(?:model\.)?(?:state_proj|action_in_proj|action_out_proj|action_time_mlp_in|action_time_mlp_out)\..*"
PI0, SMOLVLA = r"(?:model\.)?paligemma_with_expert\.", r"(?:model\.)?vlm_with_expert\."


@dataclass(frozen=True, kw_only=True)
class PolicyNames:
    """Where checkpoints of a policy have their VLM."""

    policy: str
    vlm: str  # hub id of the VLM that it was made of
    text: str  # of the decoder, here
    rules: Sequence[tuple[str, str]]  # to our names
    left_out: Sequence[str]  # what belongs to the policy alone


POLICIES = {
    "paligemma": PolicyNames(
        policy="pi0",
        vlm="google/paligemma-3b-pt-224",
        text="language_model",
        rules=[
            (PI0 + r"paligemma\.(?:model\.)?vision_tower\.(?:vision_model\.)?(.*)", r"vision_tower.\1"),
            (PI0 + r"paligemma\.(?:model\.)?(multi_modal_projector\..*)", r"\1"),
            (
                PI0 + r"paligemma\.(?:model\.)?language_model\.(?:model\.)?((?:embed_tokens|layers|norm)\..*)",
                r"language_model.\1",
            ),
            (PI0 + r"paligemma\.(?:language_model\.)?lm_head\.weight", r"lm_head.weight"),
        ],
        left_out=[PI0 + r"gemma_expert\..*", PROJECTIONS, r"(?:model\.)?time_mlp_(?:in|out)\..*", NORMALIZERS],
    ),
    "smolvlm": PolicyNames(
        policy="SmolVLA",
        vlm="HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        text="text_model",
        rules=[
            (SMOLVLA + r"vlm\.model\.((?:vision_model|connector|text_model)\..*)", r"\1"),
            (SMOLVLA + r"vlm\.lm_head\.weight", r"lm_head.weight"),
        ],
        left_out=[SMOLVLA + r"lm_expert\..*", PROJECTIONS, NORMALIZERS],
    ),
}


def vlm_of_policy(cls: type[HuggingFaceBackbone], config: BackboneConfig, source: Path) -> HuggingFaceBackbone:
    """Return the VLM of a policy's checkpoint as a backbone.

    Args:
        cls: its family.
        config: names the VLM's own files.
        source: folder of the policy's weights.

    Raises:
        FileNotFoundError: a file is not available.
        UserError: a tensor has no place, or the VLM lacks one; lists them.
    """
    names, weights = POLICIES[config.name], read_weights(source)
    renamed = _with_embedding(rename(weights, names.rules, names.left_out), names.text)
    with torch.device("meta"):
        model, tokenizer, image_processor = load(config, cls.model_type, cls.check_config, cls.original)
    _cut(model.config.get_text_config(), renamed, names)
    _fill_words(renamed, names, model.config.get_text_config().vocab_size, tokenizer)
    kinds = Counter(".".join(key.removeprefix("model.").split(".")[:2]) for key in weights if _is_left_out(key, names))
    logger.info("%s: %d tensors of %s fill the VLM", source, len(renamed), names.policy)
    logger.info("left out: %s", ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items())) or "nothing")
    return cls(build_converted(lambda: AutoModel.from_config(model.config), renamed), tokenizer, image_processor)


def _with_embedding(weights: Weights, text: str) -> Weights:
    """Return weights without a vocabulary head, which is the embedding where that is not stored beside it."""
    embedding, head = f"{text}.embed_tokens.weight", weights.pop("lm_head.weight", None)
    if embedding not in weights and head is not None:
        weights[embedding] = head
    return weights


def _cut(decoder: Any, weights: Weights, names: PolicyNames) -> None:
    """Make the config of a decoder as deep as the weights, where a policy has less layers than the VLM.

    Raises:
        UserError: it has none, or more.
    """
    layer = re.compile(rf"{names.text}\.layers\.(\d+)\.")
    depth = 1 + max((int(match[1]) for key in weights if (match := layer.match(key))), default=-1)
    if not 0 < depth <= decoder.num_hidden_layers:
        raise UserError(
            f"source has {depth} layers of a decoder, and the VLM that {names.policy} is made of "
            f"{decoder.num_hidden_layers}: give a checkpoint of {names.policy}, and with vlm= the VLM that it was made "
            f"of ({names.vlm})."
        )
    if depth < decoder.num_hidden_layers:
        logger.info("the decoder has the first %d of %d layers", depth, decoder.num_hidden_layers)
        decoder.num_hidden_layers = depth


def _fill_words(weights: Weights, names: PolicyNames, wanted: int, tokenizer: Any) -> None:
    """Append zeros to an embedding that lacks the marks of images and the unused rows behind all words.

    Raises:
        UserError: it lacks words.
    """
    key = f"{names.text}.embed_tokens.weight"
    embedding = weights.get(key)
    if embedding is None or len(embedding) >= wanted:
        return
    lacking = set(range(len(embedding), len(tokenizer))) - set(tokenizer.all_special_ids)
    if lacking:
        raise UserError(
            f"source has {len(embedding)} words, and the tokenizer of {names.vlm} has {len(lacking)} more: give with "
            "vlm= the VLM that it was made of."
        )
    logger.info("the embedding has %d of %d rows; the others, which no text uses, are 0", len(embedding), wanted)
    weights[key] = torch.cat([embedding, embedding.new_zeros(wanted - len(embedding), embedding.shape[1])])


def _is_left_out(key: str, names: PolicyNames) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in names.left_out)
