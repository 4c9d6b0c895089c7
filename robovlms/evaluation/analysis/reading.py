"""What evaluations have played, from their folders: finished ones, those that are still running, and those of earlier
versions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robovlms.errors import UserError
from robovlms.evaluation.analysis.certificate import content_digest
from robovlms.evaluation.analysis.comparison import Evaluated
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.evaluation.folder import RESULTS, journals
from robovlms.files import read_json_lines

JOURNALS = "episodes*.jsonl"
PLANNED = {"name", "tasks", "episodes", "seed", "max_steps"}  # of a simulator: what its episodes say themselves


def read_evaluation(path: Path, name: str, *, with_running: bool = False) -> Evaluated:
    """Return what an evaluation has played.

    Args:
        path: its folder, or its results.json.
        name: in the comparison.
        with_running: take what is there of one that has not finished.

    Raises:
        UserError: it is not finished, or cannot be read; says what to do.
    """
    file = path / RESULTS if path.is_dir() else path
    if file.is_file() or not path.is_dir():
        return _finished(file, read_results(file), name)
    rows = [row for journal in journals(path) for row in read_json_lines(journal)]
    if rows and not with_running:
        raise UserError(
            f"{path} has not finished: repeat the command that began it, or compare what is there with sequential=true."
        )
    conditions = next((row["conditions"] for row in rows if "conditions" in row), None)
    if not isinstance(conditions, dict):
        raise UserError(f"{path} is no evaluation: there is neither {RESULTS} nor {JOURNALS} in it.")
    played = [row for row in rows if "conditions" not in row and row.get("error") is None]
    sim = conditions.get("sim", {})
    return Evaluated(
        name=name,
        simulator=sim.get("name", ""),
        results=_episodes(played, sim, path),
        conditions=_conditions(sim, {}, conditions.get("renderer", "")),
    )


def read_results(file: Path, *, must_hold: bool = True) -> dict[str, Any]:
    """Return what a results.json holds.

    Args:
        file: its path.
        must_hold: refuse one that was changed after it was written.

    Raises:
        UserError: there is none, or it is none, or it was changed.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no {file}: give the folder of an evaluation, or the results.json in it.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not the results.json of an evaluation.")
    certificate = content.get("certificate")
    if must_hold and certificate and content_digest(content) != certificate.get("content_digest"):
        raise UserError(
            f"{file} was changed after it was written: its digest does not fit (scripts/evaluate.py verify={file}). "
            "Evaluate again."
        )
    return content


def _finished(file: Path, content: Mapping[str, Any], name: str) -> Evaluated:
    rows = content.get("episodes")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file} is not the results.json of an evaluation: it holds no list of episodes.")
    config = content.get("config") or {}
    sim = config.get("sim") or {}
    return Evaluated(
        name=name,
        simulator=sim.get("name", ""),
        results=_episodes(rows, sim, file),
        conditions=_conditions(sim, content.get("versions") or {}, content.get("certificate", {}).get("renderer", "")),
        choices=content.get("chosen_from", 1),
    )


def _episodes(rows: Sequence[dict[str, Any]], sim: Mapping[str, Any], path: Path) -> tuple[EpisodeResult, ...]:
    try:
        return tuple(EpisodeResult.from_json(_converted(row, sim) if "opposite" in row else row) for row in rows)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} holds an episode that cannot be read ({type(error).__name__}: {error}): it was edited or damaged. "
            "Evaluate again."
        ) from error


def _converted(row: Mapping[str, Any], sim: Mapping[str, Any]) -> dict[str, Any]:
    """Return an episode as it is written today that was written when all had one goal and were own or opposite."""
    return {
        "scene": row["task"],
        "seed": row["seed"],
        "goals": [{"task": row["task"], "instruction": row["instruction"]}],
        "max_steps": sim["max_steps"],
        "group": "",
        "variant": "",
        "language": "opposite" if row["opposite"] else "own",
        "goal_steps": [row["steps"]] if row["success"] else [],
        "steps": row["steps"],
        "seconds": row["seconds"],
        "error": row["error"],
    }


def _conditions(sim: Mapping[str, Any], versions: Mapping[str, str], renderer: str) -> dict[str, str]:
    """Name what may make a difference between evaluations, beside what is played and the policy."""
    options = {f"sim.{key}": str(value) for key, value in sim.items() if key not in PLANNED}
    known = {f"the version of {key}": str(value) for key, value in versions.items()}
    return options | known | ({"renderer": renderer} if renderer else {})
