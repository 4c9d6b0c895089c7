"""What the policy learns from: data sets, and what their actions mean."""

from __future__ import annotations

from dataclasses import dataclass, field

from robovlms.choices import (
    MISSING,
    CacheMode,
    Fit,
    Frame,
    ImageFormat,
    NormalizationMode,
    PictureFormat,
    Representation,
    Resize,
    RLDSTransform,
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
    frame: Frame = field(default=MISSING, metadata={"example": "tcp"})
    rotation: Rotation = Rotation.none
    position_unit: float | None = ask("1.0")  # metres that a position entry of 1.0 stands for; null: not known
    rotation_unit: float | None = 1.0  # radians that an angle of 1.0 stands for; null: not known
    gripper_closed: float = -1.0  # what a closed gripper is recorded as; policies always speak -1 and +1
    gripper_open: float = 1.0
    control_hz: float = ask("10")  # actions a second


@dataclass(kw_only=True)
class ConvertConfig:
    """What a policy is taught where it is not what the data records; null: as recorded."""

    representation: Representation | None = None
    frame: Frame | None = None
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
class CalvinDataConfig(DataConfig):
    """CALVIN folder (github.com/mees/calvin, dataset/README.md)."""

    root: str = ask("/path/to/task_ABCD_D")
    train_split: str = "training"
    validation_split: str = "validation"
    few_shot_file: str | None = None  # JSON {task: [[start, end], ...]}: only these segments
    scenes: list[str] = field(default_factory=list)  # e.g. [A, B], by scene_info.npy; empty: all
    exclude_tasks: list[str] = field(default_factory=list)
    play_instruction: str | None = None  # adds what lies between the segments, told this; null: left out


@dataclass(kw_only=True)
class LeRobotDataConfig(DataConfig):
    """LeRobotDataset folder, v2.0, v2.1 or v3.0."""

    action_key: str = "action"  # or parts put together: action.position+action.rotation[0:3]+action.gripper
    language_key: str = "task_index"  # column of numbers of tasks
    validation_fraction: float = 0.05  # share of the episodes of every task kept for validation, at least one


@dataclass(kw_only=True)
class RLDSDataConfig(DataConfig):
    """TFDS folder of TFRecords, as Open X-Embodiment publishes them (arXiv:2310.08864)."""

    train_split: str = "train"
    validation_split: str = "val"  # where there is none: the last validation_fraction of the training split
    validation_fraction: float = 0.05
    transform: RLDSTransform = RLDSTransform.none
    action_key: str = "action"  # of a step, or keys and parts of them put together: action/world_vector+action[6]
    language_key: str = "language_instruction"
    drop_first: int = 0  # leading steps of every episode that are left out
    skip_idle: bool = False  # leave out steps that tell the arm nothing, as if they were never recorded (DROID)
    success_key: str | None = None  # a flag of an episode; where it is false, the episode is left out (kuka: success)
    bgr: dict[str, PictureFormat] = field(default_factory=dict)  # view -> the format whose pictures have blue first


@dataclass(kw_only=True)
class LiberoDataConfig(DataConfig):
    """LIBERO or robomimic: a HDF5 file of demonstrations, or a folder of such files."""

    action_key: str = "actions"
    validation_fraction: float = 0.05
    instruction: str | None = None  # of all demonstrations; unset: the file's own (LIBERO's problem_info or its name)
    flip: bool = True  # LIBERO's pictures are upside down


@dataclass(kw_only=True)
class MixtureDataConfig(DataConfig):
    """Several data sets in one run; `contract` and `proprio_names` are the policy's."""

    root: str = ""  # folder that the roots of parts may lie below: ${data.root}/kuka
    views: dict[str, str] = field(default_factory=dict)
    parts: dict[str, DataConfig] = field(default_factory=dict)
    agree: bool = True  # refuse parts whose actions mean different things; false: only axes are matched
    weigh_by_size: bool = True  # a part's share is weight x windows (OpenVLA); false: weight alone

    @property
    def view_names(self) -> list[str]:
        """Name the cameras that any part has."""
        return list(dict.fromkeys(view for part in self.parts.values() for view in part.views))


@dataclass(kw_only=True)
class PackConfig:
    """How `scripts/convert_data.py` packs."""

    image_format: ImageFormat = ImageFormat.raw
    workers: int = 1  # processes
    splits: list[str] = field(default_factory=lambda: ["train", "validation"])
    verify: bool = False  # compare what is packed with its SHA-256, and write nothing

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"pack.workers={self.workers} must be at least 1.")
        if not self.splits or set(self.splits) - {"train", "validation"}:
            raise ValueError(f"pack.splits={self.splits} must name train, validation or both.")


def check_augmentation(data: DataConfig) -> None:
    """Refuse augmentation out of range, or of cameras that are not there.

    Raises:
        ValueError: names the option to change.
    """
    config = data.augmentation
    named = {"shift": set(data.shift), "augmentation.crop": set(config.crop), "augmentation.views": set(config.views)}
    for option, names in named.items():
        if unknown := names - set(data.view_names):
            raise ValueError(
                f"data.{option} names {sorted(unknown)}, which are not among data.views {data.view_names}."
            )
    for view, px in data.shift.items():
        if px < 0:
            raise ValueError(f"data.shift.{view}={px} must be at least 0.")
    if not 0 < config.largest_crop <= 1:
        raise ValueError(f"data.augmentation.largest_crop={config.largest_crop} must lie in (0, 1].")
    for view, area in config.crop.items():
        if area != 1 and not 0 < area <= config.largest_crop:
            raise ValueError(
                f"data.augmentation.crop.{view}={area} must lie in (0, {config.largest_crop}], where "
                "data.augmentation.largest_crop ends, or be 1 for none."
            )
    for name in ("brightness", "contrast", "saturation", "hue"):
        amount, most = getattr(config, name), 0.5 if name == "hue" else 1.0
        if not 0 <= amount <= most:
            raise ValueError(f"data.augmentation.{name}={amount} must lie in [0, {most}].")


def check_mixture(data: MixtureDataConfig) -> None:
    """Refuse what would not be looked at: options of a part set on the mixture, and the reverse.

    Raises:
        ValueError: names the option and where to set it.
    """
    of_parts = {"convert": ConvertConfig(), "skip_bad": False, "cache": CacheMode.native, "cache_mb": 0,
                "cache_dir": None, "fraction": 1.0, "weight": 1.0}  # fmt: skip
    for option, default in of_parts.items():
        if getattr(data, option) != default:
            raise ValueError(f"data.{option} of a mixture is not looked at: set data.parts.<name>.{option}.")
    for name, part in data.parts.items():
        for option, ours in {"augmentation": AugmentationConfig(), "num_workers": 4}.items():
            if getattr(part, option) != ours:
                raise ValueError(f"data.parts.{name}.{option} is not looked at: set the mixture's data.{option}.")
