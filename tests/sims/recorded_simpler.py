"""SimplerEnv's interface as it was recorded from the real one: names, shapes, instructions, values that steps return.

Recorded with SimplerEnv and SAPIEN 2.2.2 on a CPU, without a renderer: physics, instructions and judgement are the real
ones', pictures are not. `install` puts a replay of it where the package would be; it draws stripes and moves nothing.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

RECORDED = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


class Environment:
    """Replays one environment; `succeeds` and `opens` say after how many steps it judges so."""

    def __init__(self, env: str, calls: list[Any], script: dict[str, Any], kwargs: dict[str, Any]) -> None:
        self.recorded, self.calls, self.script = RECORDED[env], calls, script
        self.unwrapped = self
        self._limit = kwargs["max_episode_steps"]
        self._subtask = 0

    def reset(self, *, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        self.calls.append(("reset", options))
        self._steps, self._number = 0, options["obj_init_options"].get("episode_id", 0)
        return self._see(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        assert isinstance(action, np.ndarray)
        assert action.shape == (7,)
        self.calls.append(("step", action))
        if self._steps >= 100 and "then" in self.recorded:  # force_advance_subtask_time_steps
            self._subtask = 1
        self._steps += 1
        succeeds = self._steps in self.script.get("succeeds", ())
        stats = dict(self.recorded["info"]["episode_stats"])
        if "is_drawer_open" in stats:
            stats["is_drawer_open"] = self._steps >= self.script.get("opens", self._limit + 1)
        info = {**self.recorded["info"], "elapsed_steps": self._steps, "success": succeeds, "episode_stats": stats}
        return self._see(), float(succeeds), succeeds, self._steps >= self._limit, info

    def get_language_instruction(self) -> str:
        told = self.recorded["instructions"]
        return self.recorded["then"] if self._subtask else told[self._number if len(told) > 1 else 0]

    def is_final_subtask(self) -> bool:
        return "then" not in self.recorded or self._subtask == 1

    def advance_to_next_subtask(self) -> None:
        if "then" not in self.recorded:
            raise NotImplementedError
        self.calls.append(("advance",))
        self._subtask = 1

    def close(self) -> None:
        self.calls.append(("close",))

    def _see(self) -> dict[str, Any]:
        picture = np.zeros(self.recorded["picture"], np.uint8)
        if not self.script.get("black"):
            picture[::2] = 200
        return {"image": {self.recorded["camera"]: {"rgb": picture}}}


class Recording:
    """The package, and what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.script: dict[str, Any] = {}
        self.fails: Exception | None = None

    def build(self, env_name: str, **kwargs: Any) -> Environment:
        if self.fails is not None:
            raise self.fails
        self.calls.append(("build", env_name, kwargs))
        return Environment(env_name, self.calls, self.script, kwargs)

    def of(self, kind: str) -> list[Any]:
        """Return what calls of one kind were given."""
        return [call[1:] for call in self.calls if call[0] == kind]


def install(monkeypatch) -> Recording:
    """Put the replay where SimplerEnv would be."""
    recording = Recording()
    modules = {name: types.ModuleType(name) for name in ("mani_skill2_real2sim", *_parents())}
    modules["mani_skill2_real2sim"].ASSET_DIR = Path("/assets")
    modules["simpler_env.utils.env.env_builder"].build_maniskill2_env = recording.build
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return recording


def _parents() -> list[str]:
    parts = ["simpler_env", "utils", "env", "env_builder"]
    return [".".join(parts[: count + 1]) for count in range(len(parts))]
