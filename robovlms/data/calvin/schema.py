"""Options of `data=calvin`."""

from __future__ import annotations

from dataclasses import dataclass, field

from robovlms.config.data import WHERE, DataConfig
from robovlms.config.fields import ask
from robovlms.config.schemas import schema


@schema("data/calvin")
@dataclass(kw_only=True)
class CalvinDataConfig(DataConfig):
    """CALVIN folder (github.com/mees/calvin, dataset/README.md)."""

    root: str = ask("/path/to/task_ABCD_D", keeps=WHERE)
    train_split: str = "training"
    validation_split: str = "validation"
    annotations: str | None = None  # folder of auto_lang_ann.npy; null: lang_annotations, or else another lang_*
    few_shot_file: str | None = None  # JSON {task: [[start, end], ...]}: only these segments
    scenes: list[str] = field(default_factory=list)  # e.g. [A, B], by scene_info.npy; empty: all
    exclude_tasks: list[str] = field(default_factory=list)
    play_instruction: str | None = None  # adds what lies between the segments, told this; null: left out
