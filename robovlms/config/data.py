"""What the policy learns from: data sets, and what their actions mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from robovlms.config.choices import (
    MISSING,
    CacheMode,
    Fit,
    NormalizationMode,
    ReferenceFrame,
    RelativeTo,
    Representation,
    Resize,
    Rotation,
)
from robovlms.config.fields import MAX_PROCESSES, NUMBERS, READING, RUN, ask, marked, number
from robovlms.config.schemas import schema
from robovlms.errors import UserError

WHERE = f"{READING} {NUMBERS} {RUN}"  # where and how fast data are read, not what
PICTURES = f"{READING} {NUMBERS}"  # what becomes of pictures, or how often they are seen, after reading


GRIPPER = "gripper"


def gripper_entries(names: Sequence[str]) -> list[int]:
    """Say where grippers are: entries called gripper, or of an arm, left/gripper."""
    return [i for i, name in enumerate(names) if name.rpartition("/")[2] == GRIPPER]


@dataclass(kw_only=True)
class ActionContract:
    """What an action vector means. Data, checkpoint and environment must agree on it, or a run is refused.

    Position entries are called x, y, z, rotation entries as in `actions.ROTATION_NAMES`, both with or without a leading
    d (for delta); a gripper is called gripper. Where there are several arms, each entry has its arm in front: left/dx,
    left/gripper. Entries stand in any order, but for those of a rotation, and there are any number of grippers.
    """

    names: list[str] = MISSING  # one per entry, e.g. [dx, dy, dz, droll, dpitch, dyaw, gripper]
    representation: Representation = MISSING
    frame: ReferenceFrame = ask("tcp")
    rotation: Rotation = Rotation.none
    # metres that a position entry of 1.0 stands for; null: not known
    position_unit: float | None = number(above=0, example="1.0", unless=("frame", "joint"))
    rotation_unit: float | None = number(1.0, above=0)  # radians that an angle of 1.0 stands for; null: not known
    gripper_closed: float = number(-1.0)  # what a closed gripper is recorded as; policies always speak -1 and +1
    gripper_open: float = number(1.0)
    # grippers that are an opening width, normalised like the arm; the others are open or closed
    continuous_grippers: list[str] = field(default_factory=list)
    control_hz: float = number(above=0, at_most=10_000, example="10")  # actions a second

    @property
    def grippers(self) -> list[int]:
        """Say which entries are grippers."""
        return gripper_entries(self.names)

    @property
    def binary(self) -> list[int]:
        """Say which entries are grippers that are open or closed."""
        return [i for i in self.grippers if self.names[i] not in self.continuous_grippers]


@dataclass(kw_only=True)
class ConvertConfig:
    """What a policy's targets are where they are not what the data records; null: as recorded."""

    representation: Representation | None = None
    frame: ReferenceFrame | None = None
    rotation: Rotation | None = None
    position_unit: float | None = number(None, above=0)
    rotation_unit: float | None = number(None, above=0)
    control_hz: float | None = number(None, above=0, at_most=10_000)  # below the recorded rate
    relative_to: RelativeTo = RelativeTo.none  # while it learns; what a robot gets is absolute in any case
    # entries; null: all that proprioception records under the same name, but for grippers, which must be named
    relative: list[str] | None = None


@dataclass(kw_only=True)
class NormalizationConfig:
    """How arm actions reach [-1, 1]."""

    mode: NormalizationMode = MISSING
    low: float = number(-1.0)  # for mode=bounds
    high: float = number(1.0)
    modes: dict[str, NormalizationMode] = field(default_factory=dict)  # by entry name, where it differs from `mode`
    # above 0: mu-law companding of the normalised entries, e.g. 255; small motions get more room
    mu: float = number(0.0, at_least=0)
    # of the bounds that becomes [-1, 1], about their middle; 0.65 in RoboVLMs' runs on RLDS data
    share: float = number(1.0, above=0, at_most=1)
    statistics_file: str | None = None  # of RoboVLMs, OpenVLA, openpi or a run of ours, instead of those of the data
    statistics_key: str | None = None  # data set within such a file

    def check(self, option: str) -> None:
        """Refuse bounds that leave nothing between them."""
        if self.low >= self.high:
            raise UserError(f"{option}.low={self.low:g} must be below {option}.high={self.high:g}.")


@dataclass(kw_only=True)
class AugmentationConfig:
    """Random changes of training images besides `shift`; rollout and validation have none.

    The recipe of OpenVLA's RLDS data is crop 0.9 with largest_crop 0.9, brightness, contrast and saturation 0.2,
    hue 0.05 (prismatic/vla/datasets/datasets.py); its colours are TensorFlow's, see `augmentation.jitter_colors`.
    """

    # smallest area share of a crop per view; 1 or absent: none
    crop: dict[str, float] = number(dict, above=0, at_most=1)
    largest_crop: float = number(1.0, above=0, at_most=1)  # largest area share of a crop
    brightness: float = number(0.0, at_least=0, at_most=1)  # factor from [1 - x, 1 + x]
    contrast: float = number(0.0, at_least=0, at_most=1)  # likewise
    saturation: float = number(0.0, at_least=0, at_most=1)  # likewise
    hue: float = number(0.0, at_least=0, at_most=0.5)  # turns from [-x, x], at most 0.5
    views: list[str] = field(default_factory=list)  # whose colours are changed; empty: all
    per_frame: bool = True  # every frame of a window is changed its own way; false: all alike, shifts too


@dataclass(kw_only=True)
class IdleConfig:
    """What `data.skip_idle` leaves out."""

    # largest entry of the arm, as recorded, of a step in which it waits; of absolute entries their change in a step
    threshold: float = number(1e-5, at_least=0)
    keep_s: float = number(0.0, at_least=0, at_most=3600)  # seconds of every dwell that stay, from its beginning


@schema("data/base")
@dataclass(kw_only=True)
class DataConfig:
    """A data set: where it lies, how its keys map to ours, what its actions mean."""

    name: str = MISSING
    root: str = ask("/path/to/dataset", keeps=WHERE)
    views: dict[str, str] = marked(keeps=PICTURES)  # our view name -> the data set's key
    contract: ActionContract = marked(keeps=READING)
    convert: ConvertConfig = marked(ConvertConfig, keeps=READING)
    normalization: NormalizationConfig = marked(keeps=PICTURES)
    # random shift per view, px at 224 x 224; 0 or absent: none
    shift: dict[str, int] = number(dict, at_least=0, at_most=224, keeps=PICTURES)
    augmentation: AugmentationConfig = marked(AugmentationConfig, keeps=PICTURES)
    proprio_key: str | None = None  # the data set's key of proprioception; null: the policy does not see it
    proprio_names: list[str] = field(default_factory=list)  # one per entry of proprio_key, e.g. [x, y, z, opening]
    # how the pose in it is written, for conversions that need it
    proprio_rotation: Rotation = marked(Rotation.none, keeps=READING)
    proprio_seen: list[str] | None = marked(None, keeps=READING)  # entries that the policy sees; null: all
    resize: Resize = marked(Resize.device, keeps=PICTURES)
    fit: Fit = marked(Fit.stretch, keeps=PICTURES)  # of frames that are not square
    skip_bad: bool = False  # drop unreadable segments with a counted warning instead of stopping
    skip_idle: bool = False  # leave out steps in which the arm waits, as if they were never recorded
    idle: IdleConfig = field(default_factory=IdleConfig)
    # loader processes per rank; 0 reads in the training process
    num_workers: int = number(4, at_least=0, at_most=MAX_PROCESSES, keeps=WHERE)
    # windows kept decoded by every process that reads, 10**6 bytes of pixels; 0: none
    cache_mb: int = number(0, at_least=0, keeps=WHERE)
    # whether a packed copy is read, see scripts/convert_data.py
    cache: CacheMode = marked(CacheMode.native, keeps=WHERE)
    # of packed copies, indices and numbers; null: ROBOVLMS_CACHE, else ~/.cache/robovlms
    cache_dir: str | None = marked(None, keeps=WHERE)
    # those that are used, by the folder's own numbers: 0-99,200- or -3,-7-9 (left out) or keep.json, -bad.json
    episodes: str | None = marked(None, keeps=READING)
    # share of the training segments or episodes, evenly spread
    fraction: float = number(1.0, above=0, at_most=1, keeps=READING)
    weight: float = number(1.0, above=0, at_most=1e9, keeps=PICTURES)  # in a mixture

    @property
    def view_names(self) -> list[str]:
        """Name the cameras, by our names."""
        return list(self.views)

    @property
    def seen_names(self) -> list[str]:
        """Name the proprioception that the policy sees."""
        return self.proprio_names if self.proprio_seen is None else self.proprio_seen


@dataclass(kw_only=True)
class Hdf5DataConfig(DataConfig):
    """HDF5 files of demonstrations."""

    action_key: str = MISSING
    validation_fraction: float = number(0.05, at_least=0, below=1)
    instruction: str | None = None  # of all demonstrations; null: the files' own


@schema("data/mixture")
@dataclass(kw_only=True)
class MixtureDataConfig(DataConfig):
    """Several data sets in one run; `contract` and `proprio_names` are the policy's."""

    root: str = marked("", keeps=WHERE)  # folder that the roots of sources may lie below: ${data.root}/kuka
    views: dict[str, str] = marked(dict, keeps=PICTURES)
    sources: dict[str, DataConfig] = field(default_factory=dict)
    agree: bool = True  # refuse sources whose actions mean different things; false: only axes are matched
    weigh_by_size: bool = True  # a source's share is weight x windows (OpenVLA); false: weight alone

    @property
    def view_names(self) -> list[str]:
        """Name the cameras that any source has."""
        return list(dict.fromkeys(view for source in self.sources.values() for view in source.views))
