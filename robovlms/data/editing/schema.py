"""Options of `scripts/edit_data.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from robovlms.config.checks import check_data
from robovlms.config.data import DataConfig
from robovlms.config.fields import Checked, ask, number
from robovlms.config.schemas import schema
from robovlms.errors import UserError


@schema("edit_data")
@dataclass(kw_only=True)
class EditDataConfig(Checked):
    """Data sets edited, put together, divided or converted into a new LeRobot folder (`scripts/edit_data.py`)."""

    output_dir: str = ask("/path/to/new_folder")  # the new folder, or with `split` the one that holds them
    root: str | None = None  # a LeRobot folder, all of whose columns and cameras are kept; or `data`
    data: DataConfig | None = None  # a data set of any format, of which actions, proprioception and views are kept
    merge: list[str] = field(default_factory=list)  # LeRobot folders that are put behind `root`
    # episodes by number, as data.episodes takes them; those of `merge` are counted on. Unset: all
    keep: str | None = None
    drop: str | None = None  # episodes that are left out: 3,7-9 or bad.json
    trim: str | None = None  # episodes by number, with the first and the last frame that are kept: 3:12-87,5:0-40
    trim_idle: bool = False  # cut off what the robot waits at the ends of every other episode
    # of an entry's range in its folder, by which it may change while the robot waits
    idle_threshold: float = number(0.01, at_least=0, below=1)
    idle_keep: int = number(3, at_least=0)  # idle frames that stay at each end
    idle_key: str = "observation.state"  # the feature of a LeRobot folder that tells where the robot is
    # new folders by name: shares of every task's episodes ({train: 0.9, test: 0.1}) or numbers ({a: 0-9, b: 10-})
    split: dict[str, str] = field(default_factory=dict)
    rename: dict[str, str] = field(default_factory=dict)  # features, old name: new name
    rename_cameras: dict[str, str] = field(default_factory=dict)  # likewise, without observation.images.
    drop_features: list[str] = field(default_factory=list)
    set_instruction: str | None = None  # of every episode
    rename_instructions: dict[str, str] = field(default_factory=dict)  # old text: new text
    robot_type: str | None = None  # recorded in the new folder; unset: as in `root`
    video: bool = False  # with `data`: write h264 (lossy, small) instead of PNG (exact)

    def check(self, _: str) -> None:
        """Refuse no source or two, and what does not go with the one that is given."""
        if (self.root is None) == (self.data is None):
            raise UserError(
                "give root=<LeRobot folder>, all of which is kept, or for another format data=<its option> "
                "data.root=<folder>, whose actions and views are converted; one of them."
            )
        of_folders = {"merge", "keep", "drop", "trim", "rename", "rename_cameras", "drop_features",
                      "rename_instructions"}  # fmt: skip
        if self.data is not None:
            check_data(self.data)
            if wrong := sorted(name for name in of_folders if getattr(self, name)):
                raise UserError(
                    f"{wrong[0]} edits a LeRobot folder (root=...). Convert data={self.data.name} first, with "
                    "data.episodes and data.views choosing what is kept, and edit what was written."
                )
        elif self.video:
            raise UserError("video=true is for data=...: a LeRobot folder's pictures and videos stay what they are.")
        if self.set_instruction is not None and (self.rename_instructions or not self.set_instruction.strip()):
            raise UserError("set_instruction is one text for all episodes, rename_instructions are for some: give one.")
