"""Where the demonstrations of a folder began, so that they can be played again: a JSON file in its `meta`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robovlms.config.closed_loop import CollectConfig
from robovlms.errors import UserError

STARTS_FILE = "robovlms_starts.json"


@dataclass(frozen=True, kw_only=True)
class DemoStart:
    """One demonstration: in the scene of which task it began, which task was told, and its seed."""

    task: str
    told: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Starts:
    """How all demonstrations of a folder began, by their episode_index."""

    sim: str
    max_start_steps: int
    noise: float
    episodes: list[DemoStart]

    @property
    def collected(self) -> CollectConfig:
        """Return what of the collection's options decides where a seed leads."""
        return CollectConfig(max_start_steps=self.max_start_steps, noise=self.noise)

    def save(self, root: Path) -> None:
        """Write `meta/robovlms_starts.json` of a data set."""
        (root / "meta" / STARTS_FILE).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def load_starts(root: Path) -> Starts | None:
    """Read what `Starts.save` wrote; None: the folder has no such file.

    Raises:
        UserError: it holds something else.
    """
    path = root / "meta" / STARTS_FILE
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Starts(**found | {"episodes": [DemoStart(**each) for each in found["episodes"]]})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged ({error}): collect the demonstrations again into another folder."
        ) from error
