"""Instructions and frames to tensors: the same object in training and rollout.

Host side: prompts to padded token ids and, on request, resizing by PIL itself. Device side: uint8 frames to normalised
images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from robovlms.config.choices import Fit, Resize
from robovlms.errors import UserError
from robovlms.images.augmentation import crop_images, jitter_colors, shift_images
from robovlms.images.resizing import channels, resize_frames, resize_picture
from robovlms.types import Batch, ImageSpec

TOKENIZED = 1000  # instructions at once, when all are checked
MAX_KNOWN = 10_000  # prompts whose token ids are kept
REFERENCE_PX = 224  # image size at which random shifts are given


@runtime_checkable
class Model(Protocol):
    """What a backbone says about its input."""

    @property
    def image_spec(self) -> ImageSpec:
        """How the vision tower wants its pixels."""

    @property
    def prompt(self) -> str:
        """The template of prompts, with {instruction}."""

    @property
    def tokenize(self) -> Callable[[list[str]], list[list[int]]]:
        """What turns prompts into token ids; small, for it travels to loader processes."""


class Processor:
    """What stands between robot data and a backbone; it goes to loader processes, so it holds no weights."""

    def __init__(
        self,
        model: Model,
        views: list[str],
        *,
        max_text_tokens: int,
        resize: Resize = Resize.device,
        fit: Fit = Fit.stretch,
    ) -> None:
        """Take what images and text must become; nothing else of the model is kept.

        Args:
            model: whose input they are.
            views: cameras, the main one first.
            max_text_tokens: the longest prompt that is accepted, in tokens.
            resize: where frames are resized.
            fit: how frames that are not square become square.
        """
        self.image_spec = model.image_spec
        self.resize, self.fit = resize, fit
        # The last view stands first in the token sequence, so that the main (first) camera is nearest to the text.
        # Source: RoboVLMs base_backbone.py, which inserts the wrist image before the static one.
        self.views = views[::-1]
        self._prompt, self._tokenize, self._max_text_tokens = model.prompt, model.tokenize, max_text_tokens
        self._known: dict[str, list[int]] = {}  # token ids of prompts

    def _tokens(self, prompt: str) -> list[int]:
        if prompt not in self._known:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[prompt] = self._tokenize([prompt])[0]
        return self._known[prompt]

    def text(self, instructions: list[str]) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Tokenise and right-pad to the longest of the batch.

        Raises:
            UserError: an instruction longer than backbone.max_text_tokens.
        """
        rows = [self._tokens(self._written(instruction)) for instruction in instructions]
        self._check_lengths(instructions, rows)
        return pad(rows)

    def check_instructions(self, instructions: Sequence[str]) -> None:
        """Refuse instructions that `text` would refuse, before any of them is met in a batch.

        Raises:
            UserError: names the longest, and the option with a value that is enough for all.
        """
        lengths: list[int] = []
        for first in range(0, len(instructions), TOKENIZED):
            texts = [self._written(instruction) for instruction in instructions[first : first + TOKENIZED]]
            lengths += [len(row) for row in self._tokenize(texts)]
        self._check_lengths(instructions, [range(length) for length in lengths])

    def _written(self, instruction: str) -> str:
        return self._prompt.format(instruction=instruction.strip())

    def _check_lengths(self, instructions: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
        longest = max(map(len, rows), default=0)
        if longest > self._max_text_tokens:
            text = instructions[[len(row) for row in rows].index(longest)]
            raise UserError(
                f"an instruction has {longest} tokens, more than backbone.max_text_tokens={self._max_text_tokens}: "
                f"{text!r}. Set backbone.max_text_tokens={longest} or more, or shorten it in the data."
            )

    def host_frames(self, frames: UInt8[np.ndarray, "w _h _x c"]) -> UInt8[np.ndarray, "w h x c"]:
        """Resize with PIL, as the checkpoint's own image processor does, when `resize` is host; otherwise return
        the frames as they are.
        """
        size = self.image_spec.size
        if self.resize is Resize.device or frames.shape[1:3] == (size, size):
            return frames
        return np.stack([self.picture(Image.fromarray(frame)) for frame in frames])

    def picture(self, image: Image.Image) -> UInt8[np.ndarray, "h x c"]:
        """Make a picture the vision tower's square with PIL."""
        return resize_picture(image, self.image_spec, self.fit)

    def images(self, batch: Batch) -> Float[Tensor, "b w v c h x"]:
        """Crop, resize, shift, jitter and normalise on the device the batch is on; what is not drawn is not done.

        Crops are cut from frames of the size they arrive in, so that large frames keep their detail.
        """
        views = []
        for view in self.views:
            w = batch.frames[view].shape[1]
            frames = rearrange(batch.frames[view], "b w h x c -> (b w) c h x")
            drawn = (batch.crops, batch.shifts, batch.colors, batch.hues)
            crops, shifts, colors, hues = (d[view].flatten(0, 1) if d and view in d else None for d in drawn)
            if crops is not None:
                frames = crop_images(frames, crops)
            frames = resize_frames(frames, self.image_spec, self.fit)
            if shifts is not None:
                frames = shift_images(frames, shifts)
            if colors is not None or hues is not None:
                frames = jitter_colors(frames, colors, hues)
            views.append(rearrange(frames, "(b w) c h x -> b w c h x", w=w))
        return self.normalize(torch.stack(views, dim=2))

    def normalize(self, images: UInt8[Tensor, "*n c h x"]) -> Float[Tensor, "*n c h x"]:
        """Scale pixels as the vision tower wants them."""
        images = images.float()
        mean, std = (channels(value, images) for value in (self.image_spec.mean, self.image_spec.std))
        return images.sub_(255 * mean).div_(255 * std)


def pad(rows: Sequence[Sequence[int]]) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
    """Pad token ids on the right to the longest; the mask is False there."""
    longest = max(map(len, rows))
    ids, mask = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    return torch.from_numpy(ids), torch.from_numpy(mask)
