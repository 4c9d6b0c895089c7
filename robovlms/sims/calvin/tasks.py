"""The 34 tasks with their instructions, read from the official checkout.

Source: github.com/mees/calvin, calvin_models/conf: what an evaluation tells is the validation annotation, of which
there is one a task; paraphrases are the sentences of the training data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from robovlms.sims.base import Task
from robovlms.sims.calvin.chains import COLOURS

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
    """Return the tasks by name, in the order of the official list."""
    told, training = _read(root / VALIDATION), _read(root / TRAINING)
    return {
        name: Task(
            name=name,
            instruction=told[name][0],
            opposite=OPPOSITES.get(name),
            paraphrases=tuple(training[name]),
        )
        for name in told
    }


def read_criteria(root: Path) -> dict[str, Any]:
    """Return what counts as success of each task, as `calvin_env.envs.tasks.Tasks` takes it."""
    return dict(_read(root / ORACLE)["tasks"])


def _read(path: Path) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    return dict(content)
