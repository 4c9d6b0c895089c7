"""An exported policy acts: needs numpy and onnxruntime, and no torch."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from jaxtyping import Float32

from robovlms.errors import UserError
from robovlms.exporting.names import FRAMES, METADATA, NEXT, VERSION


class ExportedPolicy:
    """One session of an ONNX file that `robovlms-export` wrote.

    Example:
        policy = ExportedPolicy("policy.onnx")
        chunk = policy.predict({"side": picture}, "open the drawer")
    """

    def __init__(self, path: str | Path, *, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        """Load a program.

        Args:
            path: of the ONNX file.
            providers: of onnxruntime, the preferred first.

        Raises:
            UserError: another program, or of another version.
        """
        self._session = onnxruntime.InferenceSession(str(path), providers=list(providers))
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA)
        if text is None:
            raise UserError(f"{path} was not written by robovlms-export: it does not say what its inputs mean.")
        self.description: dict[str, Any] = json.loads(text)
        if self.description["version"] != VERSION:
            raise UserError(f"{path} was written by another version of robovlms: export the checkpoint again.")
        self._inputs: dict[str, tuple[tuple[int, ...], str]] = {
            name: (tuple(shape), dtype) for name, (shape, dtype) in self.description["inputs"].items()
        }
        self.views = [name.removeprefix(FRAMES) for name in self._inputs if name.startswith(FRAMES)]
        self._newest: deque[dict[str, np.ndarray]] = deque(maxlen=self.description["window_size"])
        self.reset()

    def reset(self) -> None:
        """Forget the episode."""
        self._forget()
        self._newest.clear()
        self._text: list[int] | None = None

    def predict(
        self,
        frames: Mapping[str, np.ndarray],
        instruction: str | Sequence[int],
        proprio: Sequence[float] | np.ndarray | None = None,
        noise: np.ndarray | None = None,
    ) -> Float32[np.ndarray, "k _a"]:
        """Return the chunk of the newest frame, in environment units, with the entries `description["action_names"]`.

        A new instruction is read with the whole window, as in training: that costs a run for every frame of it.

        Args:
            frames: uint8 "h x 3", RGB, of every view, of the size that was exported.
            instruction: one of `description["instructions"]`, or token ids.
            proprio: entries of `description["proprio_names"]`, in their order.
            noise: what flow and diffusion start from; None: what the checkpoint was stored with.

        Raises:
            UserError: an input is missing or has another shape or type; the session is as it was.
            FloatingPointError: the actions are not finite.
        """
        seen = {FRAMES + view: self._picture(frames, view) for view in self.views}
        if "proprio" in self._inputs:
            seen["proprio"] = self._proprio(proprio)
        if "noise" in self._inputs:
            seen["noise"] = self._noise(noise)
        text = self._ids(instruction)
        self._newest.append(seen)
        if self._text not in (None, text):
            self._forget()
            for before in list(self._newest)[:-1]:
                self._run(before, text)
        self._text = text
        actions = self._run(seen, text)
        if not np.isfinite(actions).all():
            raise FloatingPointError("the policy predicts actions that are not finite: send nothing to the robot.")
        return actions

    def _forget(self) -> None:
        self._memory = {name: np.zeros(*self._inputs[name]) for name in self.description["memory"]}

    def _run(self, seen: Mapping[str, np.ndarray], text: list[int]) -> Float32[np.ndarray, "k _a"]:
        padding = [0] * (self.description["min_text_tokens"] - len(text))
        ids, mask = np.array([text + padding]), np.array([[True] * len(text) + [False] * len(padding)])
        inputs = {**seen, "text_ids": ids, "text_mask": mask, **self._memory}
        outputs = dict(
            zip(self.description["outputs"], self._session.run(self.description["outputs"], inputs), strict=True)
        )
        self._memory = {name: outputs[NEXT + name] for name in self._memory}
        actions: np.ndarray = outputs["actions"][0]
        return actions

    def _picture(self, frames: Mapping[str, np.ndarray], view: str) -> np.ndarray:
        if view not in frames:
            raise UserError(f"the policy needs the views {self.views}; the observation has {list(frames)}.")
        picture, shape = np.asarray(frames[view]), self._inputs[FRAMES + view][0][1:]
        if picture.dtype != np.uint8 or picture.shape != shape:
            raise UserError(
                f"view {view}: a picture of {picture.dtype} {picture.shape}, but the program takes uint8 {shape}: "
                "resize it, or export again with picture=[height,width] of the camera."
            )
        return picture[None].copy()

    def _proprio(self, proprio: Sequence[float] | np.ndarray | None) -> np.ndarray:
        names = self.description["proprio_names"]
        row = None if proprio is None else np.array(proprio, np.float32)
        if row is None or row.shape != (len(names),) or not np.isfinite(row).all():
            raise UserError(f"the policy needs proprioception of {', '.join(names)}, finite; not {proprio}.")
        return row[None]

    def _noise(self, noise: np.ndarray | None) -> np.ndarray:
        row = np.array(self.description["noise"] if noise is None else noise, np.float32)
        if row.shape != (shape := self._inputs["noise"][0][1:]):
            raise UserError(f"noise of shape {row.shape}, but the program takes {shape}.")
        return row[None]

    def _ids(self, instruction: str | Sequence[int]) -> list[int]:
        known, longest = self.description["instructions"], self.description["max_text_tokens"]
        if isinstance(instruction, str):
            if instruction.strip() not in known:
                raise UserError(
                    f"instruction {instruction!r} is not in the program, which has {list(known)}: give token ids, or "
                    "export again with instructions=[...]."
                )
            return list(known[instruction.strip()])
        ids = [int(each) for each in instruction]
        if not 1 <= len(ids) <= longest or min(ids) < 0:
            raise UserError(f"an instruction of {len(ids)} token ids: 1 to {longest} are read, none below 0.")
        return ids
