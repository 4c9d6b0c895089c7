"""Demonstrations into a LeRobotDataset v3.0 folder that lerobot itself loads.

Source: github.com/huggingface/lerobot, src/lerobot/datasets/dataset_writer.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from robovlms.data.files.video import write_video
from robovlms.data.lerobot.features import feature_key, make_features
from robovlms.data.lerobot.folder import FolderWriter, VideoSpan
from robovlms.data.lerobot.stats import PixelCounts
from robovlms.errors import UserError


class LeRobotWriter(FolderWriter):
    """Pictures, actions and states in, a data set folder out.

    Args:
        root: the folder to create.
        fps: control steps a second.
        robot_type: recorded in `meta/info.json`.
        action_names: one per action entry.
        proprio_names: one per entry of observation.state; none, and there is no such feature.
        image_keys: (height, width) by view; view `side` becomes the feature observation.images.side.
        video: h264 mp4 (lossy, small) instead of PNG embedded in parquet (exact).

    Raises:
        FileExistsError: `root` exists.
        UserError: a view has a dotted name, or an odd size and `video`.
    """

    def __init__(
        self,
        root: Path,
        *,
        fps: int,
        robot_type: str,
        action_names: list[str],
        proprio_names: list[str],
        image_keys: dict[str, tuple[int, int]],
        video: bool = False,
    ) -> None:
        for view, size in image_keys.items():
            if "." in view or "/" in view:
                raise UserError(f"view '{view}': give the bare name; it is stored as observation.images.<view>.")
            if video and any(side % 2 for side in size):
                raise UserError(
                    f"view '{view}' is {size[0]} x {size[1]}: h264 needs even sizes; choose PNG or another size."
                )
        features = make_features(fps, action_names, proprio_names, image_keys, video)
        super().__init__(root, fps=fps, robot_type=robot_type, features=features)
        self._sizes = image_keys
        self._is_video = video

    def __enter__(self) -> LeRobotWriter:
        return self

    def add_episode(
        self,
        frames: dict[str, UInt8[np.ndarray, "t _h _x c"]],
        actions: Float32[np.ndarray, "t a"],
        proprio: Float32[np.ndarray, "t p"],
        task: str,
    ) -> None:
        """Append one episode: frame i, the state in it and the action taken there.

        Raises:
            UserError: lengths, sizes or views disagree with the constructor, or a number is not finite.
        """
        self._check(frames, actions, proprio, task)
        images = {feature_key(view): frames[view] for view in self._sizes}
        columns = {"observation.state": proprio, "action": actions, **({} if self._is_video else images)}
        self.add_rows(
            columns,
            {"task_index": [task] * len(actions)},
            pixels={key: PixelCounts.of(pictures) for key, pictures in images.items()},
            videos={key: self._write_video(key, pictures) for key, pictures in images.items() if self._is_video},
        )

    def _write_video(self, key: str, frames: UInt8[np.ndarray, "t _h _x c"]) -> VideoSpan:
        number, path = self.video_path(key)
        write_video(path, frames, self._fps)
        return VideoSpan(number, 0.0)

    def _check(self, frames: dict[str, Any], actions: np.ndarray, proprio: np.ndarray, task: str) -> None:
        if set(frames) != set(self._sizes):
            raise UserError(f"frames hold the views {sorted(frames)}, expected {sorted(self._sizes)}.")
        expected: dict[str, tuple[int, ...]] = {view: (len(actions), *size, 3) for view, size in self._sizes.items()}
        numbers = {"action": actions, "observation.state": proprio}
        for key in numbers:
            width = self.features[key]["shape"][0] if key in self.features else 0
            expected[key] = (len(actions), width)
        for key, array in {**frames, **numbers}.items():
            if array.shape != expected[key]:
                raise UserError(f"'{key}' has shape {array.shape}, expected {expected[key]}.")
        if not (np.isfinite(actions).all() and np.isfinite(proprio).all()):
            raise UserError(f"episode {len(self._episodes)} ('{task}') has actions or states that are not finite.")
        if not len(actions) or not task:
            raise UserError(
                f"episode {len(self._episodes)} has {len(actions)} frames and task '{task}', expected some."
            )
