"""What the policy learns from: data sets, and what their actions mean."""

from __future__ import annotations

from dataclasses import dataclass, field

from robovlms.config.choices import (
    MISSING,
    CacheMode,
    Fit,
    NormalizationMode,
    ReferenceFrame,
    Representation,
    Resize,
    Rotation,
    ask,
)


@dataclass(kw_only=True)
class ActionContract:
    """What an action vector means. Data, checkpoint and environment must agree on it, or a run is refused.

    Position entries are called x, y, z, rotation entries as in `actions.ROTATION_NAMES`, both with or without a leading
    d (for delta). The last entry is the gripper, called gripper; data without one gets one that is never taught.
    """

    names: list[str] = MISSING  # one per entry, e.g. [dx, dy, dz, droll, dpitch, dyaw, gripper]
    representation: Representation = MISSING
    frame: ReferenceFrame = field(default=MISSING, metadata={"example": "tcp"})
    rotation: Rotation = Rotation.none
    position_unit: float | None = ask(
        "1.0", unless=("frame", "joint")
    )  # metres of a position entry of 1.0; null: unknown
    rotation_unit: float | None = 1.0  # radians that an angle of 1.0 stands for; null: not known
    gripper_closed: float = -1.0  # what a closed gripper is recorded as; policies always speak -1 and +1
    gripper_open: float = 1.0
    control_hz: float = ask("10")  # actions a second


@dataclass(kw_only=True)
class ConvertConfig:
    """What a policy is taught where it is not what the data records; null: as recorded."""

    representation: Representation | None = None
    frame: ReferenceFrame | None = None
    rotation: Rotation | None = None
    position_unit: float | None = None
    rotation_unit: float | None = None
    control_hz: float | None = None  # below the recorded rate


@dataclass(kw_only=True)
class NormalizationConfig:
    """How arm actions reach [-1, 1]."""

    mode: NormalizationMode = MISSING
    low: float = -1.0  # for mode=bounds
    high: float = 1.0
    modes: dict[str, NormalizationMode] = field(default_factory=dict)  # by entry name, where it differs from `mode`
    mu: float = 0.0  # above 0: mu-law companding of the normalised entries, e.g. 255; small motions get more room
    statistics_file: str | None = None  # of RoboVLMs, OpenVLA or openpi, instead of those of the data
    statistics_key: str | None = None  # data set within such a file


@dataclass(kw_only=True)
class AugmentationConfig:
    """Random changes of training images besides `shift`; rollout and validation have none.

    The recipe of OpenVLA's RLDS data is crop 0.9 with largest_crop 0.9, brightness, contrast and saturation 0.2,
    hue 0.05 (prismatic/vla/datasets/datasets.py); its colours are TensorFlow's, see `augmentation.jitter_colors`.
    """

    crop: dict[str, float] = field(default_factory=dict)  # smallest area share of a crop per view; 1 or absent: none
    largest_crop: float = 1.0  # largest area share of a crop
    brightness: float = 0.0  # factor from [1 - x, 1 + x]
    contrast: float = 0.0  # likewise
    saturation: float = 0.0  # likewise
    hue: float = 0.0  # turns from [-x, x], at most 0.5
    views: list[str] = field(default_factory=list)  # whose colours are changed; empty: all
    per_frame: bool = True  # every frame of a window is changed its own way; false: all alike, shifts too


@dataclass(kw_only=True)
class DataConfig:
    """A data set: where it lies, how its keys map to ours, what its actions mean."""

    name: str = MISSING
    root: str = ask("/path/to/dataset")
    views: dict[str, str] = MISSING  # our view name -> the data set's key
    contract: ActionContract = MISSING
    convert: ConvertConfig = field(default_factory=ConvertConfig)
    normalization: NormalizationConfig = MISSING
    shift: dict[str, int] = field(default_factory=dict)  # random shift per view, px at 224 x 224; 0 or absent: none
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    proprio_key: str | None = None  # the data set's key of proprioception; null: the policy does not see it
    proprio_names: list[str] = field(default_factory=list)  # one per entry of proprio_key, e.g. [x, y, z, opening]
    proprio_rotation: Rotation = Rotation.none  # how the pose in it is written, for conversions that need it
    proprio_seen: list[str] | None = None  # entries that the policy sees; null: all
    resize: Resize = Resize.device
    fit: Fit = Fit.stretch  # of frames that are not square
    skip_bad: bool = False  # drop unreadable segments with a counted warning instead of stopping
    num_workers: int = 4  # loader processes per rank; 0 reads in the training process
    cache_mb: int = 0  # windows kept decoded by every process that reads, 10**6 bytes of pixels; 0: none
    cache: CacheMode = CacheMode.native  # whether a packed copy is read, see scripts/convert_data.py
    cache_dir: str | None = None  # of packed copies, indices and numbers; null: ROBOVLMS_CACHE, else ~/.cache/robovlms
    fraction: float = 1.0  # share of the training segments or episodes, evenly spread
    weight: float = 1.0  # in a mixture

    @property
    def view_names(self) -> list[str]:
        """Name the cameras, by our names."""
        return list(self.views)

    @property
    def seen_names(self) -> list[str]:
        """Name the proprioception that the policy sees."""
        return self.proprio_names if self.proprio_seen is None else self.proprio_seen


@dataclass(kw_only=True)
class MixtureDataConfig(DataConfig):
    """Several data sets in one run; `contract` and `proprio_names` are the policy's."""

    root: str = ""  # folder that the roots of parts may lie below: ${data.root}/kuka
    views: dict[str, str] = field(default_factory=dict)
    sources: dict[str, DataConfig] = field(default_factory=dict)
    agree: bool = True  # refuse parts whose actions mean different things; false: only axes are matched
    weigh_by_size: bool = True  # a part's share is weight x windows (OpenVLA); false: weight alone

    @property
    def view_names(self) -> list[str]:
        """Name the cameras that any part has."""
        return list(dict.fromkeys(view for source in self.sources.values() for view in source.views))
