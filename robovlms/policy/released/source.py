"""Weights as RoboVLMs' trainer leaves them: a file of Lightning or PyTorch, or a folder of DeepSpeed's.

Nothing in a file is executed: what is not numbers and plain containers is refused.
"""

from __future__ import annotations

import errno
import logging
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from robovlms.backbones.checkpoints.conversion import Weights
from robovlms.errors import UserError
from robovlms.files import refuse_pointer

logger = logging.getLogger(__name__)
ENDINGS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
HOLDERS = ("state_dict", "model_state_dict", "module")  # Lightning, PyTorch scripts, DeepSpeed
WRAPPERS = ("_forward_module.", "module.", "_orig_mod.")  # DeepSpeed, DDP, torch.compile
LIGHTNING = "model."  # the trainer's name of the model
SHARDS = "*_model_states.pt"
WHOLE = "mp_rank_00_model_states.pt"  # of ZeRO 1 and 2: the whole model in half precision


def find_weights(source: Path) -> Path:
    """Return the file that `source` means: itself, or the one of a folder.

    Raises:
        FileNotFoundError: there is none.
        UserError: there are several, or DeepSpeed's shards each hold a part.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise FileNotFoundError(
            f"source={source} does not exist: give the .pt file that RoboVLMs released or wrote, or its folder."
        )
    if shards := sorted(source.rglob(SHARDS)):
        if [shard.name for shard in shards] != [WHOLE]:
            raise UserError(
                _consolidate(source, f"holds {len(shards)} DeepSpeed shards, each with a part of the model")
            )
        logger.warning(
            "%s holds the weights in half precision; those in float32 are in the optimizer's shards: `python "
            "zero_to_fp32.py . weights.pt` in DeepSpeed's folder joins them, for source=weights.pt.", shards[0],
        )  # fmt: skip
        return shards[0]
    found = sorted(path for path in source.iterdir() if path.suffix in ENDINGS)
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"source={source} holds {len(found)} files of weights: name one, e.g. source={found[0]}.")
    raise FileNotFoundError(f"source={source} holds no weights ({', '.join(ENDINGS)}): name RoboVLMs' .pt file.")


def read_released(path: Path) -> Weights:
    """Return the weights of a file by RoboVLMs' own names (`backbone...`, `act_head...`, `action_token`).

    Raises:
        UserError: the file is damaged, holds foreign objects, no weights, or parts of them.
    """
    content = _load(path)
    held = content if isinstance(content, dict) else {}
    weights = next((held[key] for key in HOLDERS if isinstance(held.get(key), dict)), held)
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        found = ", ".join(map(str, list(held)[:8])) or type(content).__name__
        raise UserError(
            f"source={path} holds no weights: expected tensors by name below state_dict or model_state_dict, found "
            f"{found}."
        )
    if any(value.numel() == 0 for value in weights.values()):
        raise UserError(_consolidate(path, "is a shard of ZeRO 3, whose tensors are elsewhere"))
    return _bare(weights)


def _consolidate(source: Path, what: str) -> str:
    return (
        f"source={source} {what}: join them first, with `python zero_to_fp32.py . weights.pt` in the folder that "
        "DeepSpeed wrote (the script lies there) or RoboVLMs' tools/convert_deepspeed_to_fp32.py, and give "
        "source=weights.pt."
    )


def _load(path: Path) -> Any:
    refuse_pointer(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        foreign = sorted(set(re.findall(r"GLOBAL ([\w.]+) was", str(error))))
        if not foreign:
            raise _damaged(path, ValueError("it is not in PyTorch's format")) from error
        raise UserError(
            f"source={path} holds more than weights ({', '.join(foreign)}), which is not read, since reading would "
            'execute it. If you trust the file, write the weights alone where RoboVLMs runs: python -c "import torch; '
            f"c = torch.load('{path.name}', map_location='cpu', weights_only=False); "
            "torch.save({'state_dict': c.get('state_dict') or c.get('model_state_dict') or c['module']}, "
            "'weights.pt')\"."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, SafetensorError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # how torch says that a file ends too early
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f"source={path} ({path.stat().st_size} bytes) is damaged, or no file of weights ({reason}): copy or download "
        "it again, and compare its size with the original's."
    )


def _bare(weights: Weights) -> Weights:
    """Take off what trainers put before names. One `model.` is the trainer's; RoboVLMs' Flamingo has a second."""
    for wrapper in WRAPPERS:
        weights = {key.removeprefix(wrapper): value for key, value in weights.items()}
    if all(key.startswith(LIGHTNING) for key in weights):
        weights = {key.removeprefix(LIGHTNING): value for key, value in weights.items()}
    return weights
