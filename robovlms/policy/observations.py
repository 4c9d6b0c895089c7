"""What robots send becomes what a policy reads, or is refused by name: pictures, instructions and proprioception.

Whatever is taken is copied, so that a robot may overwrite its buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image

from robovlms.errors import UserError
from robovlms.types import ActionPrefix

CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
DARKEST = 16.0  # a float picture that is neither within 0 to 1 nor reaches this says not which range it has


def read_picture(value: Any, view: str) -> UInt8[np.ndarray, "h x 3"]:
    """Return an RGB picture of 0 to 255.

    Taken are arrays, tensors, PIL images and nested lists: height x width with 1, 3 or 4 channels, first or last, or
    with none (grey); leading axes of one; integers of 0 to 255, and floats of 0 to 1 or of 0 to 255. Alpha is dropped.

    Raises:
        UserError: it is anything else, or two readings are possible; names the view.
    """
    array = _channels_last(_array(value, view), view)
    pixels = _bytes(array, view)
    return np.array(np.broadcast_to(pixels[..., :3], (*pixels.shape[:2], 3)), order="C")


def read_instruction(value: Any, *, may_be_empty: bool = False) -> str:
    """Return an instruction without blanks at its ends. Taken is text or UTF-8, also as the only entry of a list.

    Raises:
        UserError: it is empty, unless it may be, or no text.
    """
    text = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    while isinstance(text, list | tuple) and len(text) == 1:
        (text,) = text
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"the instruction {text!r} is not UTF-8: {error}.") from error
    if not isinstance(text, str):
        raise UserError(f"the instruction must be one text, not {_what(value)}.")
    text = text.strip("\0 \t\r\n")
    if not text and not may_be_empty:
        raise UserError("the instruction is empty: send what the robot is to do, phrased as in the training data.")
    return text


def read_proprio(value: Any, names: Sequence[str]) -> Float32[np.ndarray, "p"]:
    """Return proprioception, one number for each of `names`. Taken are numbers of any kind, also behind axes of one.

    Raises:
        UserError: it is missing, of another length, or not finite; names the entries.
    """
    needs, send = f"the policy needs proprioception of {len(names)} entries", f"send {', '.join(names)}"
    if value is None:
        raise UserError(f"{needs}; the observation has none: {send}.")
    array = _numbers(value)
    if array is None:
        raise UserError(f"{needs}; the observation has {_what(value)}: {send}.")
    if array.ndim == 0 or array.shape[:-1] != (1,) * (array.ndim - 1):
        raise UserError(f"{needs}; the observation has the shape {array.shape}: {send}.")
    if array.shape[-1] != len(names):
        raise UserError(f"{needs}; the observation has {array.shape[-1]} entries: {send}.")
    with np.errstate(over="ignore"):
        row = array.reshape(-1).astype(np.float32)
    if wrong := [
        f"{name}={number}" for name, number in zip(names, row.tolist(), strict=True) if not np.isfinite(number)
    ]:
        raise UserError(f"proprioception is not finite: {', '.join(wrong)}.")
    return row


def read_prefix(value: ActionPrefix, names: Sequence[str], chunk_size: int) -> tuple[Float32[np.ndarray, "n a"], int]:
    """Return the actions of a prefix, and how many of them will have been executed.

    Args:
        value: what a robot sends.
        names: of an action's entries.
        chunk_size: actions that a chunk has, and a prefix at most.

    Raises:
        UserError: they are no such actions, or not finite.
    """
    actions, delay = _numbers(value.actions), value.delay
    if actions is None or actions.ndim != 2 or len(actions) > chunk_size or actions.shape[1] != len(names):
        found = _what(value.actions if actions is None else actions)
        raise UserError(f"a prefix must be up to {chunk_size} actions of {', '.join(names)}; it is {found}.")
    with np.errstate(over="ignore"):
        actions = actions.astype(np.float32)
    if not np.isfinite(actions).all():
        raise UserError("a prefix must be of actions that are finite.")
    if not isinstance(delay, int | np.integer) or isinstance(delay, bool) or delay < 0:
        raise UserError(f"the delay of a prefix must be a number of actions, 0 or more, not {str(delay)[:80]}.")
    return actions, int(delay)


def _array(value: Any, view: str) -> np.ndarray:
    """Return numbers of any type and shape."""
    if isinstance(value, Image.Image):
        value = value if value.mode in ("F", "I") or value.mode.startswith("I;") else value.convert("RGB")
    array = None if isinstance(value, str | bytes) else _numbers(value)
    if array is None or array.size == 0:
        raise UserError(f"view '{view}' must be a picture, as pixels of height x width x 3; it is {_what(value)}.")
    return array


def _numbers(value: Any) -> np.ndarray | None:
    """Return an array of integers or floats; None: there are none in it."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype is torch.bfloat16 else value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):  # ragged lists; tensors that are no arrays
        return None
    return array if array.dtype.kind in "iuf" else None


def _channels_last(array: np.ndarray, view: str) -> np.ndarray:
    """Return a picture with its channels last."""
    shape = array.shape
    while array.ndim > 3 and len(array) == 1:
        array = array[0]
    if array.ndim == 2:
        return array[..., None]
    expected = f"view '{view}' must be one picture of height x width x 3"
    if array.ndim != 3:
        raise UserError(f"{expected}; it has the shape {shape}.")
    first, _, last = array.shape
    is_first, is_last = first in CHANNELS and (first, last) != (4, 3), last in CHANNELS  # no RGBA is 3 px wide
    if is_first == is_last:
        why = "its first and its last axis may be channels" if is_first else "no axis is of 1, 3 or 4 channels"
        raise UserError(f"{expected}; it has the shape {shape}: {why}.")
    return array if is_last else np.moveaxis(array, 0, -1)


def _bytes(array: np.ndarray, view: str) -> np.ndarray:
    """Return the pixels as uint8."""
    if array.dtype == np.uint8:
        return array
    low, high = array.min(), array.max()
    found = f"view '{view}' has pixels of {array.dtype} from {low:g} to {high:g}"
    if array.dtype.itemsize == 2 and array.dtype.kind in "iu":
        raise UserError(f"{found}: 16 bits may mean depth, or another scale. Send uint8, 0 to 255.")
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 255:
        raise UserError(f"{found}: send them as recorded, uint8 of 0 to 255 or float of 0 to 1, not normalised.")
    if array.dtype.kind in "iu" or high == 0 or high >= DARKEST:
        return array.round().astype(np.uint8)
    if high > 1 or (array == array.round()).all():
        raise UserError(f"{found}, which may be of the range 0 to 1 or 0 to 255: send uint8.")
    return (255 * array.astype(np.float32)).round().astype(np.uint8)


def _what(value: Any) -> str:
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"an array of {value.dtype} of the shape {tuple(value.shape)}"
    return "None" if value is None else f"of the type {type(value).__name__}"
