"""Results on disk as they come: one JSON line per episode, so that a killed evaluation goes on where it stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robovlms.errors import UserError
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.evaluation.folder import journal_name, journals
from robovlms.files import write_text
from robovlms.sims.base import Episode

logger = logging.getLogger(__name__)


class Journal:
    """The finished episodes of one evaluation (`done`), and the file that this process appends its own to (`path`).

    A process of a launch has a file of its own; `done` is what all of them hold, those of earlier launches among them.
    The first line of each holds the conditions: whatever else the results depend on (checkpoint, simulator, executed
    steps). Episodes that ended in an error are on file for reading, but are not read into `done`: they run again.
    """

    def __init__(
        self, folder: Path, conditions: Mapping[str, object], episodes: Sequence[Episode], process: str = ""
    ) -> None:
        """Read the files of a folder, and open or create that of this process.

        Raises:
            UserError: one holds results of other conditions or of episodes that are not in the plan.
        """
        self.path = folder / journal_name(process)
        self.done: dict[Episode, EpisodeResult] = {}
        for path in journals(folder):
            if lines := _complete_lines(path, drop_rest=path == self.path):
                self._read(path, lines, json.loads(json.dumps(conditions)), set(episodes))
        if self.done:
            logger.info("resuming from %s: %d of %d episodes are done", folder, len(self.done), len(episodes))
        if not self.path.exists() or not self.path.stat().st_size:
            write_text(self.path, json.dumps({"conditions": conditions}) + "\n")

    def append(self, result: EpisodeResult) -> None:
        """Write one result down; when this returns it survives the process."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result.to_json()) + "\n")
        if not result.has_failed:
            self.done[result.episode] = result

    def _read(self, path: Path, lines: list[str], conditions: dict[str, Any], planned: set[Episode]) -> None:
        advice = "Set overwrite=true to start again, or choose another output_dir."
        try:
            found = json.loads(lines[0])["conditions"]
            results = [EpisodeResult.from_json(json.loads(line)) for line in lines[1:]]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is not a file of evaluation results ({error}). {advice}") from error
        if changed := [key for key in {**found, **conditions} if found.get(key) != conditions.get(key)]:
            differences = "; ".join(f"{key} was {found.get(key)!r}, is {conditions.get(key)!r}" for key in changed)
            raise UserError(f"{path} holds results made differently: {differences}. {advice}")
        done = {result.episode: result for result in results if result.error is None}
        if foreign := [episode for episode in done if episode not in planned]:
            raise UserError(f"{path} holds {len(foreign)} episodes outside this plan, e.g. {foreign[0]}. {advice}")
        self.done |= done


def _complete_lines(path: Path, *, drop_rest: bool) -> list[str]:
    """Read the lines that are whole; another process may be about to write the next.

    Args:
        path: of the file.
        drop_rest: cut off what a killed process left of a line, so that lines can be appended; its episode runs again.
    """
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    if complete != text and drop_rest:
        logger.warning("%s ends in an unfinished line, which is dropped; its episode runs again", path)
        write_text(path, complete)
    return complete.splitlines()
