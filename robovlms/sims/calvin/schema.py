"""Options of `sim=calvin`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, auto

from robovlms.config.closed_loop import SimConfig
from robovlms.config.fields import DEMO, marked
from robovlms.config.schemas import schema
from robovlms.errors import UserError

NUM_CHAINS = 1000  # of the official evaluation
MAX_STEPS = 360  # that each task of a chain may take there


class Renderer(StrEnum):
    """What of PyBullet draws the pictures; the two give other pixels."""

    tiny = auto()  # TinyRenderer, on the CPU
    egl = auto()  # OpenGL without a display, what CALVIN's data sets were rendered with


@schema("sim/calvin")
@dataclass(kw_only=True)
class CalvinSimConfig(SimConfig):
    """CALVIN (github.com/mees/calvin), from the user's own checkouts.

    Without `tasks` an episode is one of the official chains: `episodes` of them from number `seed` on.
    """

    root: str | None = marked(None, keeps=DEMO)  # checkout of mees/calvin; null: CALVIN_ROOT
    env_root: str | None = marked(None, keeps=DEMO)  # of mees/calvin_env; null: CALVIN_ENV_ROOT, or <root>/calvin_env
    dataset: str | None = None  # folder with .hydra/merged_config.yaml; null: composed from calvin_env/conf
    scene: str | None = None  # of calvin_env/conf/scene; null: the data set's, or calvin_scene_D
    renderer: Renderer = Renderer.tiny

    def check(self, option: str) -> None:
        """Refuse chains beyond the official ones."""
        if not self.tasks and self.seed + self.episodes > NUM_CHAINS:
            raise UserError(
                f"{option}.seed={self.seed} and {option}.episodes={self.episodes} ask for chains up to number "
                f"{self.seed + self.episodes - 1}: there are {NUM_CHAINS}, from 0 on."
            )
