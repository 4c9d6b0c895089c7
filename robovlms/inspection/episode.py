"""One episode as training sees it: pictures, actions in the policy's words, and the mask of every window."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

from robovlms.data.base import Numbers, Reader
from robovlms.data.windows import WindowDataset
from robovlms.errors import UserError
from robovlms.inspection.scan import Faults, read_pictures

MAX_STEPS = 5000  # of an episode that are shown
MAX_SIDE, QUALITY = 320, 82  # of the embedded JPEGs, px


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What the page of an episode shows; step i is the policy's."""

    episode: int
    instruction: str
    source: str
    hz: float
    num_steps: int
    recorded_steps: int  # of the whole episode, where it is longer than what is shown
    window_size: int
    chunk_size: int
    names: list[str]
    actions: Float32[np.ndarray, "t a"]
    proprio_names: list[str]
    proprio: Float32[np.ndarray, "t p"]
    masks: list[str]  # of the window that starts at step i, a 1 per real action, a 0 per masked one
    stride: int  # picture j shows step j * stride
    pictures: dict[str, list[str | None]]  # JPEG data URIs by view; None cannot be read
    sizes: dict[str, str]  # recorded height x width
    faults: Faults


class _Remembered(Reader):
    """Another reader's episode without pictures, its numbers read once instead of once per window."""

    def __init__(self, reader: Reader, episode: int, steps: int) -> None:
        self.episodes = reader.episodes
        self._reader, self._numbers = reader, reader.numbers(episode, np.arange(steps))

    def frames(self, episode: int, steps: Int64[np.ndarray, "w"]) -> dict[str, UInt8[np.ndarray, "w _h _x c"]]:
        """Return no view."""
        return {}

    def numbers(self, episode: int, steps: Int64[np.ndarray, "n"]) -> Numbers:
        """Return rows from memory."""
        actions, proprio = self._numbers
        return Numbers(actions[steps], None if proprio is None else proprio[steps])

    def location(self, episode: int, first: int, last: int) -> str:
        """Ask the reader."""
        return self._reader.location(episode, first, last)

    def summary(self) -> str:
        """Ask the reader."""
        return self._reader.summary()

    def fingerprint(self) -> str:
        """Ask the reader."""
        return self._reader.fingerprint()


def load_replay(dataset: WindowDataset, episode: int, max_pictures: int) -> Replay:
    """Read an episode, its pictures (at most `max_pictures` a view) and the windows that training takes from it.

    Raises:
        UserError: there is no such episode, it has no window, or its numbers cannot be read.
    """
    reader, converter = dataset.reader, dataset.converter
    if not 0 <= episode < len(reader.episodes):
        raise UserError(f"episode={episode}: there are 0 to {len(reader.episodes) - 1} in {reader.summary()}.")
    windows = dataset.windows(episode)
    if not windows:
        raise UserError(
            f"episode={episode} is shorter than window.window_size={dataset.window_size}, so training never sees it: "
            "choose another episode= or a shorter window=."
        )
    length = reader.episodes[episode].length
    blind = WindowDataset(
        _Remembered(reader, episode, length),
        dataset.source,
        window_size=dataset.window_size,
        chunk_size=dataset.chunk_size,
    )
    total = len(windows) + dataset.window_size - 1
    steps = min(total, MAX_STEPS)
    samples = [blind[number] for number in windows[:steps]]
    # The first action of every window, and what follows in the last one.
    actions = np.concatenate([[sample.actions[0] for sample in samples], samples[-1].actions[1:]])[:steps]
    seen = [sample.proprio for sample in samples if sample.proprio is not None]
    proprio = np.concatenate([[rows[0] for rows in seen], seen[-1][1:]]) if seen else np.zeros((steps, 0), np.float32)
    stride = -(-steps // max_pictures)
    faults = Faults()
    pictures, sizes = _pictures(dataset, episode, np.arange(0, steps, stride), faults)
    return Replay(
        episode=episode,
        instruction=reader.episodes[episode].instruction,
        source=reader.location(episode, 0, length - 1),
        hz=converter.target.control_hz,
        num_steps=steps,
        recorded_steps=total,
        window_size=dataset.window_size,
        chunk_size=dataset.chunk_size,
        names=converter.target.names,
        actions=actions,
        proprio_names=dataset.config.seen_names,
        proprio=proprio[:steps],
        masks=["".join("1" if real else "0" for real in sample.action_mask) for sample in samples],
        stride=stride,
        pictures=pictures,
        sizes=sizes,
        faults=faults,
    )


def _pictures(
    dataset: WindowDataset, episode: int, steps: Int64[np.ndarray, "n"], faults: Faults
) -> tuple[dict[str, list[str | None]], dict[str, str]]:
    observed = dataset.converter.starts(steps)
    places = {int(frame): place for place, frame in enumerate(observed)}
    pictures: dict[str, list[str | None]] = {}
    sizes: dict[str, str] = {}
    for frame, images in read_pictures(dataset.reader, episode, observed, faults):
        for view, image in images.items():
            pictures.setdefault(view, [None] * len(steps))[places[frame]] = to_jpeg(image)
            sizes.setdefault(view, f"{image.shape[0]} x {image.shape[1]}")
    return pictures, sizes


def to_jpeg(image: UInt8[np.ndarray, "_h _x c"]) -> str:
    """Return a picture as a data URI, made smaller where a side exceeds MAX_SIDE."""
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
