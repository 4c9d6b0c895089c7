"""Results on disk as they come: one JSON line per episode, so that a killed evaluation goes on where it stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robovlms.errors import UserError
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.files import write_text
from robovlms.sims.base import Episode

logger = logging.getLogger(__name__)


class Journal:
    """The finished episodes of one evaluation (`done`), and the file they are appended to.

    The first line holds the conditions: whatever else the results depend on (checkpoint, simulator, executed steps).
    Episodes that ended in an error are on file for reading, but not in `done`: they run again.
    """

    def __init__(self, path: Path, conditions: Mapping[str, object], episodes: Sequence[Episode]) -> None:
        """Open or create the file.

        Raises:
            UserError: it holds results of other conditions or of episodes that are not in the plan.
        """
        self.path = path
        self.done: dict[Episode, EpisodeResult] = {}
        if path.exists() and (lines := _complete_lines(path)):
            self._read(lines, json.loads(json.dumps(conditions)), set(episodes))
        else:
            write_text(path, json.dumps({"conditions": conditions}) + "\n")

    def append(self, result: EpisodeResult) -> None:
        """Write one result down; when this returns it survives the process."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result.to_json()) + "\n")
        if result.error is None:
            self.done[result.episode] = result

    def _read(self, lines: list[str], conditions: dict[str, Any], planned: set[Episode]) -> None:
        advice = "Set overwrite=true to start again, or choose another output_dir."
        try:
            found = json.loads(lines[0])["conditions"]
            results = [EpisodeResult.from_json(json.loads(line)) for line in lines[1:]]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.path} is not a file of evaluation results ({error}). {advice}") from error
        if changed := [key for key in {**found, **conditions} if found.get(key) != conditions.get(key)]:
            differences = "; ".join(f"{key} was {found.get(key)!r}, is {conditions.get(key)!r}" for key in changed)
            raise UserError(f"{self.path} holds results made differently: {differences}. {advice}")
        self.done = {result.episode: result for result in results if result.error is None}
        if foreign := [episode for episode in self.done if episode not in planned]:
            raise UserError(f"{self.path} holds {len(foreign)} episodes outside this plan, e.g. {foreign[0]}. {advice}")
        logger.info("resuming from %s: %d of %d episodes are done", self.path, len(self.done), len(planned))


def _complete_lines(path: Path) -> list[str]:
    """Read the lines; one that a killed process left unfinished is cut off the file, and its episode runs again."""
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    if complete != text:
        logger.warning("%s ends in an unfinished line, which is dropped; its episode runs again", path)
        write_text(path, complete)
    return complete.splitlines()
