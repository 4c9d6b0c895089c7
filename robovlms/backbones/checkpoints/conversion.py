"""What conversions of original checkpoints share: reading their weights, renaming, and naming every key that is left.

Families that transformers does not know keep a folder of ours in Hugging Face format, written once by
`scripts/convert_backbone.py` from the original files.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from robovlms.backbones.base import Backbone
from robovlms.errors import UserError
from robovlms.files import refuse_pointer

logger = logging.getLogger(__name__)
Weights = dict[str, Tensor]
M = TypeVar("M", bound=nn.Module)
NUM_SHOWN = 12  # keys of an error message


@runtime_checkable
class Convertible(Protocol):
    """A backbone that can be read from its authors' own files."""

    @classmethod
    def from_original(cls, source: Path) -> Backbone:
        """Build the backbone from the folder its authors published.

        Raises:
            FileNotFoundError: a file is missing.
            UserError: a weight has no place in our model, or one of ours is not among them; lists them.
        """


def read_weights(folder: Path) -> Weights:
    """Read every `*.safetensors` of a folder, or else every `*.bin` and `*.pt`; nothing in them is executed.

    Raises:
        FileNotFoundError: there is neither.
    """
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.pt")]):
        refuse_pointer(path)
    if paths := sorted(folder.glob("*.safetensors")):
        parts = [load_file(path) for path in paths]
    elif paths := sorted([*folder.glob("*.bin"), *folder.glob("*.pt")]):
        parts = [torch.load(path, map_location="cpu", weights_only=True, mmap=True) for path in paths]
    else:
        raise FileNotFoundError(f"{folder} holds no weights (*.safetensors, *.bin or *.pt): name the published folder.")
    return {key: value for part in parts for key, value in part.items()}


def rename(weights: Mapping[str, Tensor], rules: Sequence[tuple[str, str]], drop: Sequence[str] = ()) -> Weights:
    r"""Return every weight its new name.

    Args:
        weights: in the original naming.
        rules: pattern of the whole name, and its replacement (`\1` for groups); the first that fits counts.
        drop: patterns of whole names that are left out, such as buffers.

    Raises:
        UserError: no rule fits some weights; lists them.
    """
    renamed, unknown = {}, []
    for key, value in weights.items():
        if any(re.fullmatch(pattern, key) for pattern in drop):
            continue
        match = next(((found, new) for old, new in rules if (found := re.fullmatch(old, key))), None)
        if match is None:
            unknown.append(key)
        else:
            renamed[match[0].expand(match[1])] = value
    if unknown:
        raise UserError(f"{len(unknown)} weights of the original have no place in our model: {_some(unknown)}.")
    return renamed


def build_converted(make: Callable[[], M], weights: Mapping[str, Tensor]) -> M:
    """Build a model around converted weights, which must be exactly its own; they are taken, not copied.

    Args:
        make: builds it; called on the meta device first, so that what does not fit is found without the memory.
        weights: under its names.

    Raises:
        UserError: weights are missing, too many, or of another shape; lists them.
    """
    with torch.device("meta"):
        wanted = make().state_dict()
    problems = {
        "are missing": [key for key in wanted if key not in weights],
        "are not the model's": [key for key in weights if key not in wanted],
        "have another shape": [
            f"{key} {tuple(weights[key].shape)} instead of {tuple(wanted[key].shape)}"
            for key in wanted
            if key in weights and weights[key].shape != wanted[key].shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in problems.items() if keys)
        raise UserError(f"The original's weights do not fill our model. {found}.")
    with no_init_weights():
        model = make()
    model.load_state_dict(dict(weights), assign=True)
    return model.eval()


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - NUM_SHOWN} more" if len(keys) > NUM_SHOWN else ""
    return ", ".join(keys[:NUM_SHOWN]) + more
