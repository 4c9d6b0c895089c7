"""The 34 tasks with their instructions, read from the official checkout.

Source: github.com/mees/calvin, calvin_models/conf: what an evaluation tells is the validation annotation, of which
there is one a task; paraphrases are the sentences of the training data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from robovlms.errors import UserError
from robovlms.sims.base import Task
from robovlms.sims.calvin.chains import COLOURS, task_names

CONF = Path("calvin_models/conf")
VALIDATION = CONF / "annotations/new_playtable_validation.yaml"
TRAINING = CONF / "annotations/new_playtable.yaml"
ORACLE = CONF / "callbacks/rollout/tasks/new_playtable_tasks.yaml"

_PAIRS = [
    ("open_drawer", "close_drawer"),
    ("move_slider_left", "move_slider_right"),
    ("turn_on_lightbulb", "turn_off_lightbulb"),
    ("turn_on_led", "turn_off_led"),
    *(
        (f"{verb}_{colour}_block_left", f"{verb}_{colour}_block_right")
        for verb in ("push", "rotate")
        for colour in COLOURS
    ),
]
OPPOSITES = dict(_PAIRS) | {b: a for a, b in _PAIRS}


def read_tasks(root: Path) -> dict[str, Task]:
    """Return the tasks by name, in the order of the official list.

    Raises:
        UserError: a file of the checkout is damaged or lacks tasks.
    """
    told, training = _read(root / VALIDATION), _read(root / TRAINING)
    return {
        name: Task(
            name=name,
            instruction=sentences[0],
            opposite=OPPOSITES.get(name),
            paraphrases=tuple(training[name]),
        )
        for name, sentences in told.items()
        if name in task_names()
    }


def read_criteria(root: Path) -> dict[str, list[Any]]:
    """Return what counts as success of each task, as `calvin_env.envs.tasks.Tasks` takes it.

    Raises:
        UserError: the file of the checkout is damaged or lacks tasks.
    """
    return _read(root / ORACLE, "tasks")


def _read(path: Path, key: str | None = None) -> dict[str, list[Any]]:
    """Return what a file, or an entry of it, lists for every task."""
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        content = content[key] if key else content
        missing = [name for name in task_names() if not (isinstance(content[name], list) and content[name])]
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError, LookupError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"sim.root: {path} is damaged ({reason}): clone github.com/mees/calvin again.") from error
    if missing:
        raise UserError(f"sim.root: {path} lists nothing for {', '.join(missing)}: clone github.com/mees/calvin again.")
    return dict(content)
