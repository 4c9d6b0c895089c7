"""The videos of a LeRobot folder in a new one: files that stay whole are copied, episodes of others encoded again."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from robovlms.data.files.opened import OpenFiles
from robovlms.data.files.video import index_video, open_video, read_frames, write_video
from robovlms.data.lerobot.folder import FolderWriter, VideoSpan
from robovlms.data.lerobot.format import EpisodeFiles
from robovlms.data.lerobot.timing import SHARE
from robovlms.errors import UserError

EXACT_S = 1e-4  # by which lerobot lets a frame miss its time, by default
BLOCK = 32  # frames that are decoded at once


class Videos:
    """The videos of one folder on their way into a new one.

    Args:
        source: all episodes of the folder, with the places of their frames.
        whole: those that the new folder gets whole: files that show no other are copied into it.
        writer: of the new folder.
        fps: frames a second.
    """

    def __init__(
        self, source: Sequence[EpisodeFiles], whole: Sequence[EpisodeFiles], writer: FolderWriter, fps: float
    ) -> None:
        self._writer, self._fps = writer, fps
        self._opened = OpenFiles(open_video)
        self._copied: dict[tuple[str, Path], int] = {}  # number of the file in the new folder
        self.counts: Counter[tuple[str, str]] = Counter()  # by new key: files "copied", episodes "encoded"
        shown, kept = _by_file(source), _by_file(whole)
        self._whole = {
            file
            for file, episodes in kept.items()
            if len(episodes) == len(shown[file]) and all(_shows(episode, file[1], file[0], fps) for episode in episodes)
        }

    def write(self, key: str, name: str, episode: EpisodeFiles, times: Float64[np.ndarray, "t"]) -> VideoSpan:
        """Copy the file that shows an episode, once, or encode what it shows at `times`; return where it is then.

        Args:
            key: the feature, as the old folder calls it.
            name: as the new one does.
            episode: that is shown.
            times: of its frames that are taken, in seconds.

        Raises:
            UserError: frames are missing, or of an odd size.
        """
        place = episode.videos[key]
        file = (key, place.path)
        if file in self._whole:
            if file not in self._copied:
                self._copied[file], path = self._writer.video_path(name)
                shutil.copyfile(place.path, path)
                self.counts[name, "copied"] += 1
            return VideoSpan(self._copied[file], place.start)
        number, path = self._writer.video_path(name)
        try:
            write_video(path, self._frames(place.path, times), round(self._fps))
        except UserError as error:
            raise UserError(f"{place.path}: cannot read '{key}' of episode {episode.index}: {error}.") from error
        self.counts[name, "encoded"] += 1
        return VideoSpan(number, 0.0)

    def read(self, path: Path, times: Float64[np.ndarray, "t"]) -> UInt8[np.ndarray, "t _h _x c"]:
        """Return the frames that a file shows at `times`, in seconds."""
        return read_frames(self._opened[path], times, SHARE / self._fps)

    def _frames(self, path: Path, times: Float64[np.ndarray, "t"]) -> Iterator[UInt8[np.ndarray, "_h _x c"]]:
        for start in range(0, len(times), BLOCK):
            frames = self.read(path, times[start : start + BLOCK])
            if frames.shape[1] % 2 or frames.shape[2] % 2:
                raise UserError(f"its pictures are {frames.shape[1]} x {frames.shape[2]}, and h264 needs even sizes")
            yield from frames


def describe(features: dict[str, dict[str, Any]], counts: Counter[tuple[str, str]]) -> str:
    """Correct what features say of their codec where episodes were encoded again; return what became of all videos."""
    for (name, what), count in counts.items():
        infos = [
            features[name][group] for group in ("info", "video_info") if isinstance(features[name].get(group), dict)
        ]
        for info in infos if what == "encoded" and count else ():
            for entry, value in {"video.codec": "h264", "video.pix_fmt": "yuv420p"}.items():
                if counts[name, "copied"] and info.get(entry) != value:
                    info.pop(entry, None)  # the files differ
                else:
                    info[entry] = value
    copied, encoded = (sum(n for (_, what), n in counts.items() if what == which) for which in ("copied", "encoded"))
    told = [f"{copied} video files copied as they are"] if copied else []
    return ", ".join([*told, *([f"{encoded} encoded again as h264 (lossy)"] if encoded else [])])


def _by_file(episodes: Sequence[EpisodeFiles]) -> dict[tuple[str, Path], list[EpisodeFiles]]:
    found: dict[tuple[str, Path], list[EpisodeFiles]] = defaultdict(list)
    for episode in episodes:
        for key, place in episode.videos.items():
            found[key, place.path].append(episode)
    return found


def _shows(episode: EpisodeFiles, path: Path, key: str, fps: float) -> bool:
    """Tell whether a file shows a frame i / fps seconds after the first one, as exactly as lerobot asks for."""
    shown, times = index_video(path).times, episode.videos[key].start + np.arange(episode.length) / fps
    after = np.searchsorted(shown, times).clip(1, max(len(shown) - 1, 1))
    off = np.minimum(np.abs(shown[np.minimum(after, len(shown) - 1)] - times), np.abs(shown[after - 1] - times))
    return bool((off <= EXACT_S).all())
