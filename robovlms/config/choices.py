"""The words a config value may be, and durations. Members are lower-case because OmegaConf matches member names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum, auto
from typing import Any

from robovlms.errors import UserError
from robovlms.registry import nearest

MISSING: Any = "???"  # OmegaConf's mark for "the user must say this"


class Structure(StrEnum):
    """How history reaches the policy (arXiv:2412.14058, section III)."""

    one_step = auto()  # the newest frame only
    interleaved = auto()  # all frames in one sequence of the VLM
    policy_head = auto()  # frames encoded one by one, fused by the head


class FrameCache(StrEnum):
    """What streaming does once an interleaved window is full."""

    exact = auto()  # reads the window again, from vision that was kept: what training computes
    staggered = auto()  # keeps two caches and resets them in turn: between half a window and a whole one is seen


class Execution(StrEnum):
    """How predicted chunks become actions."""

    first = auto()  # asks at every step, executes the first action
    chunk = auto()  # executes `execute_steps` actions of a chunk, then asks again
    ensemble = auto()  # asks at every step, averages all predictions of the step (ACT, arXiv:2304.13705)
    real_time = auto()  # as chunk, and every chunk goes on where the last one was (arXiv:2506.07339): flow, diffusion


class Language(StrEnum):
    """What becomes of an episode's instructions."""

    own = auto()  # as the benchmark words them
    opposite = auto()  # that of the task that undoes the first goal: reaching this goal is a mistake
    empty = auto()  # none: what the pictures alone tell
    paraphrase = auto()  # other words of the same meaning
    spelling = auto()  # capitals and a full stop


class HeadKind(StrEnum):
    """What a head makes of the frames of a window."""

    frame = auto()  # reads the newest frame's features, or attends to all of them
    memory = auto()  # carries its own memory from frame to frame
    tokens = auto()  # lets the VLM write the chunk, token by token
    slots = auto()  # lets the VLM fill in the chunk, all tokens at once


class ArmLoss(StrEnum):
    """Regression loss of the arm."""

    huber = auto()  # delta 1, what upstream trains with
    mse = auto()  # what the paper writes
    l1 = auto()


class QueryInit(StrEnum):
    """What learned queries start from."""

    zero = auto()  # upstream
    embedding = auto()  # Gaussian, as large as the backbone's own text tokens


class FlowSolver(StrEnum):
    """Integration of a flow head."""

    euler = auto()
    heun = auto()  # two velocities a step, second order


class ModelSize(StrEnum):
    """`tiny` keeps a family's architecture with a few hundred thousand random weights, for smoke runs and tests."""

    full = auto()
    tiny = auto()


class WeightType(StrEnum):
    """How the backbone's weights are stored."""

    fp32 = auto()  # what training needs: the optimizer's small steps are lost in anything coarser
    bf16 = auto()  # half the memory, for weights that are frozen; adapters beside them stay float32


class GpuName(StrEnum):
    """A GPU whose published figures the planner knows (`planner/machines.py`)."""

    rtx3090 = auto()  # 24 GB
    rtx4090 = auto()  # 24 GB
    l4 = auto()  # 24 GB
    rtx5090 = auto()  # 32 GB
    a100_40gb = auto()
    l40s = auto()  # 48 GB
    a100_80gb = auto()
    h100 = auto()  # 80 GB
    h200 = auto()  # 141 GB
    b200 = auto()  # 180 GB


class NormalizationMode(StrEnum):
    """Which bounds of each arm entry become -1 and +1."""

    bounds = auto()  # the fixed `low` and `high` of the config; actions are clipped to them (RoboVLMs, CALVIN)
    min_max = auto()  # smallest and largest value in the data
    quantile = auto()  # 1st and 99th percentile of the data; actions are clipped to them (OpenVLA)
    mean_std = auto()  # mean 0, standard deviation 1; neither clipped nor bounded: for heads without tanh
    identity = auto()  # unchanged


class Representation(StrEnum):
    """What a pose entry of an action is relative to."""

    delta = auto()  # to where the hand is
    absolute = auto()  # to the origin of the frame


class RelativeTo(StrEnum):
    """What a chunk's absolute actions are learned as differences from."""

    none = auto()  # nothing: as they are
    state = auto()  # the proprioception of the frame that the chunk is predicted from (openpi, GR00T)


class ReferenceFrame(StrEnum):
    """The axes that an action's entries are given in."""

    world = auto()
    base = auto()  # of the robot
    tcp = auto()  # of the hand as it is when the action is taken
    joint = auto()  # no axes: joint angles
    image = auto()  # pixels


class Rotation(StrEnum):
    """How a rotation is written; `actions.ROTATION_NAMES` has its entries."""

    none = auto()
    euler = auto()  # roll, pitch, yaw about fixed x, y, z
    euler_increment = auto()  # what is added to the pose's roll, pitch and yaw: CALVIN, Bridge; deltas only
    axis_angle = auto()
    quaternion = auto()  # x, y, z, w with w >= 0
    rotation_6d = auto()  # first two columns of the matrix (arXiv:1812.07035)


class Split(StrEnum):
    """Which demonstrations of a data set."""

    train = auto()
    validation = auto()


class RLDSTransform(StrEnum):
    """How steps of a data set become actions of ours, beyond what keys can say."""

    none = auto()
    bridge = auto()  # BridgeData V2: first step dropped, actions from states, gripper made binary
    gripper_motions = auto()  # of the gripper only, +1 closes and -1 opens: made an opening, 1 and 0
    gripper_clip = auto()  # of the gripper only: what leaves 0 to 1 is cut off, so that -1 counts as 0


class PictureFormat(StrEnum):
    """How a data set's pictures are compressed."""

    png = auto()
    jpeg = auto()


class Resize(StrEnum):
    """Where frames are resized to the vision tower's size."""

    device = auto()  # on the accelerator, within 2/255 of PIL: pixels travel as recorded uint8
    host = auto()  # by PIL in the loader, as the checkpoints' own image processors do


class Fit(StrEnum):
    """How a frame that is not square becomes square."""

    stretch = auto()  # its sides are stretched, as RoboVLMs and most families do
    crop = auto()  # its middle, as the CLIP processors of llava and flamingo do
    pad = auto()  # between bars of the mean colour, as llava_onevision and uform do


class CacheMode(StrEnum):
    """Whether a data set is read from where `scripts/convert_data.py` packed it."""

    native = auto()  # never
    packed = auto()  # always; without one a run is refused
    auto = auto()  # where a packed copy of these very data is found; the last member, for it hides the function


class ImageFormat(StrEnum):
    """How packed frames are stored."""

    raw = auto()  # uint8, mapped: read without decoding, about five times the room of jpeg
    jpeg = auto()  # quality 95, 4:4:4


class ScheduleName(StrEnum):
    """Learning rate after the warm-up."""

    constant = auto()
    cosine = auto()


class ExportFormat(StrEnum):
    """What `scripts/export.py` writes: ONNX, or a program of torch.export."""

    onnx = auto()
    torch = auto()


class Quantization(StrEnum):
    """How the backbone's matrices are stored while a policy acts."""

    int8 = auto()


class EngineDtype(StrEnum):
    """Arithmetic of a policy that acts."""

    fp32 = auto()
    bf16 = auto()
    auto = "auto"


class CompileMode(StrEnum):
    """What is run by torch.compile."""

    off = auto()  # nothing: no waiting at the start
    layers = auto()  # every layer of vision tower and decoder, alike ones by one graph: seconds of compiling
    # the forward as one graph as far as it goes: minutes for a large model; acting: the vision tower, by CUDA graphs
    model = auto()


class Precision(StrEnum):
    """Arithmetic of forward and backward; the optimizer changes float32, but for other `rounding`s."""

    fp32 = auto()
    bf16 = auto()  # the backbone's weights and activations, with float32 masters behind them; the head's by autocast
    bf16_autocast = auto()  # float32 weights, rounded for every product


class Moments(StrEnum):
    """How the optimizer stores its two moments of every weight."""

    fp32 = auto()  # 8 bytes a weight
    bf16_stochastic = auto()  # 4: rounded at random, so that small changes add up on average
    int8 = auto()  # 2: one of 256 values, and a scale for every 256 of them


class ActingWeights(StrEnum):
    """Which of a checkpoint's weights act."""

    trained = auto()
    ema = auto()  # their moving average, of a run with `ema`


class ReduceDtype(StrEnum):
    """What gradients are rounded to on their way between processes; each keeps and sums its own as they are."""

    fp32 = auto()
    bf16 = auto()  # half the bytes


class TrackerName(StrEnum):
    """Where metrics may go besides the console and `metrics.jsonl`."""

    tensorboard = auto()
    wandb = auto()


class WandbMode(StrEnum):
    """How wandb runs; offline needs no account."""

    offline = auto()
    online = auto()
    disabled = auto()


class Unit(StrEnum):
    """Unit of a duration: passes over the training windows, or optimizer steps."""

    epoch = auto()
    step = auto()


@dataclass(frozen=True)
class Duration:
    """A length of training such as `0.25 epoch` or `5000 step`; epochs become steps once the data set's size is
    known.
    """

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str, option: str = "duration") -> Duration:
        """Read `<number> epoch` or `<number> step` (a plural s is fine).

        Raises:
            UserError: anything else; names `option` and both forms.
        """
        match = re.fullmatch(r"\s*([+-]?[0-9._]+(?:[eE][+-]?[0-9]+)?|inf|nan)\s*([A-Za-z]+?)s?\s*", text)
        units = [unit.value for unit in Unit]
        if match is None or match[2] not in units:
            hint = nearest(match[2], units) if match else ""
            raise UserError(f"{option}={text!r} is not a duration.{hint} Write e.g. '0.25 epoch' or '5000 step'.")
        try:
            return cls(float(match[1]), Unit(match[2]))
        except ValueError:
            raise UserError(f"{option}={text!r}: {match[1]!r} is not a number. Write e.g. '0.25 epoch'.") from None

    def steps(self, steps_per_epoch: int) -> int:
        """Return the number of optimizer steps, rounded to the nearest."""
        return round(self.amount * steps_per_epoch) if self.unit is Unit.epoch else round(self.amount)


@dataclass(frozen=True)
class CheckpointChoice:
    """Which checkpoints of a run are evaluated: those at multiples of `every` steps, or the last alone (None)."""

    every: int | None

    @classmethod
    def parse(cls, text: str, option: str = "checkpoints") -> CheckpointChoice:
        """Read `last`, `all` or `every:<steps>`.

        Raises:
            UserError: anything else; names `option` and the forms.
        """
        if text in ("last", "all"):
            return cls(1 if text == "all" else None)
        match = re.fullmatch(r"every:\s*([0-9][0-9_]*)", text)
        if match is None or int(match[1]) < 1:
            raise UserError(f"{option}={text} does not exist: write last, all, or e.g. every:10000 (steps).")
        return cls(int(match[1]))

    def __contains__(self, step: int) -> bool:
        """Tell whether the checkpoint of a step is one of several that are wanted."""
        return self.every is not None and step % self.every == 0
