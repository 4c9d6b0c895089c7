"""What `benchmarks/ladder.py` measures: runs and engines of published sizes, random weights, made-up windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModel

from robovlms.actions.plan import DataPlan
from robovlms.actions.statistics import Statistics
from robovlms.backbones.base import Backbone
from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.backbones.trainable import select_trainable
from robovlms.config.choices import (
    CompileMode,
    EngineDtype,
    FrameCache,
    ModelSize,
    NormalizationMode,
    Precision,
    ReferenceFrame,
    Representation,
    Rotation,
    Structure,
)
from robovlms.config.closed_loop import CollectConfig, EngineConfig, EvaluationConfig
from robovlms.config.data import ActionContract, NormalizationConfig
from robovlms.config.policy import BackboneConfig, HeadConfig, StructureConfig, ViewConfig, WindowConfig
from robovlms.config.run import TrainConfig
from robovlms.config.training import (
    ClusterConfig,
    OptimizerConfig,
    PrecisionConfig,
    ScheduleConfig,
    TrackingConfig,
    TrainerConfig,
)
from robovlms.data.base import RobotDataset
from robovlms.data.calvin.schema import CalvinDataConfig
from robovlms.heads.base import HeadSizes
from robovlms.heads.schemas.lstm import LSTMHeadConfig
from robovlms.heads.schemas.mlp import MLPHeadConfig
from robovlms.images.processor import Processor
from robovlms.policy.engine import PolicyEngine
from robovlms.policy.policy import VLAPolicy
from robovlms.registry import BACKBONES, HEADS
from robovlms.training.schemas.parallel import DDPConfig
from robovlms.types import ImageSpec, Observation, Sample

NAMES = ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
PIXELS = {"side": 200, "wrist": 84}  # CALVIN's cameras
IMAGE = 224  # px that the models see
TOKENS = {"kosmos": 18, "paligemma": 13, "qwen2_5_vl": 12}  # of an instruction of CALVIN, by the family's tokenizer
TINY_TOKENS = 12
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")


@dataclass(frozen=True, kw_only=True)
class Rung:
    """How one row of the ladder trains."""

    name: str
    precision: Precision = Precision.bf16
    attention: str = "sdpa"
    compile: CompileMode = CompileMode.off
    all_tokens: bool = False  # the decoder's last MLP computes at every token, not at the queries alone
    copies: bool = False  # upstream's host work: future frames copied unpinned, the loss read before backward


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is built: published models, or their tiny ones."""

    tiny: bool
    device: str

    @property
    def window(self) -> int:
        """Frames of a window."""
        return 4 if self.tiny else 16

    @property
    def chunk(self) -> int:
        """Actions of a chunk."""
        return 10

    def tokens(self, model: str) -> int:
        """Return the number of tokens of an instruction."""
        return TINY_TOKENS if self.tiny else TOKENS.get(model, 16)

    def head(self, structure: Structure) -> HeadConfig:
        """Return the head of a structure."""
        width = 64 if self.tiny else 1024
        is_late = structure is Structure.policy_head
        return LSTMHeadConfig(name="lstm", hidden_dim=width) if is_late else MLPHeadConfig(name="mlp", hidden_dim=width)


def make_config(model: str, rung: Rung, windows: int, sizes: Sizes, folder: Path) -> TrainConfig:
    """Return the run of a rung, as `experiment=calvin_perform` would be on one GPU."""
    return TrainConfig(
        name="ladder",
        output_dir=str(folder / "run"),
        batch_size=windows,
        device_batch_size=windows,
        backbone=BackboneConfig(
            name=model, size=ModelSize.tiny if sizes.tiny else ModelSize.full, attn_implementation=rung.attention
        ),
        head=sizes.head(Structure.policy_head),
        structure=StructureConfig(name=Structure.policy_head),
        window=WindowConfig(window_size=sizes.window, chunk_size=sizes.chunk),
        view=ViewConfig(views=list(PIXELS)),
        data=data_config(),
        optimizer=OptimizerConfig(name="adamw", lr=1e-5),
        schedule=ScheduleConfig(warmup="0 step", total="1 epoch"),
        precision=PrecisionConfig(name=rung.precision),
        parallel=DDPConfig(name="ddp"),
        cluster=ClusterConfig(name="local", device_batch_size=windows),
        tracking=TrackingConfig(progress=False),
        trainer=TrainerConfig(compile=rung.compile, validate_every=None),
        collect=CollectConfig(),
        evaluation=EvaluationConfig(),
    )


def data_config() -> CalvinDataConfig:
    """Return what CALVIN's actions mean; its files are not read."""
    contract = ActionContract(
        names=NAMES,
        representation=Representation.delta,
        frame=ReferenceFrame.world,
        rotation=Rotation.euler_increment,
        position_unit=0.02,
        rotation_unit=0.05,
        control_hz=30.0,
    )
    return CalvinDataConfig(
        name="calvin",
        root="/none",
        views={view: view for view in PIXELS},
        contract=contract,
        normalization=NormalizationConfig(mode=NormalizationMode.bounds, low=-0.65, high=0.65),
        shift={"side": 10, "wrist": 4},
        num_workers=0,
    )


def statistics() -> Statistics:
    """Return those of actions that are uniform in their bounds."""
    return Statistics.compute(np.random.default_rng(0).uniform(-0.65, 0.65, (64, len(NAMES))).astype(np.float32))


def make_backbone(config: BackboneConfig, device: str) -> Backbone:
    """Return a backbone with random weights, made on `device`, and the tiny one's tokenizer; no file is read.

    Dropout is off: rungs are compared by their losses.
    """
    cls = BACKBONES.get(config.name)
    if config.size is ModelSize.tiny:
        backbone = cls.from_config(config)
        for module in backbone.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return backbone
    published = cls.published_config()
    for part in (published, published.get_text_config(), getattr(published, "vision_config", None)):
        for name in DROPOUTS:
            if hasattr(part, name):
                setattr(part, name, 0.0)
    with torch.device(device):
        model = AutoModel.from_config(published, attn_implementation=config.attn_implementation, dtype=torch.float32)

    class Published(cls):  # type: ignore[valid-type, misc]
        def _make_image_spec(self) -> ImageSpec:
            return self._spec_of_size(IMAGE)  # the tiny one's image processor has another size

    tiny = cls.tiny()
    backbone: HuggingFaceBackbone = Published(model, tiny.tokenizer, tiny.image_processor)
    backbone.prompt = config.prompt
    backbone.save_activations(config.checkpointing)
    select_trainable(backbone, config)
    return backbone


def make_policy(config: BackboneConfig, structure: Structure, sizes: Sizes, window: int) -> VLAPolicy:
    """Return a policy; its weights are the same every time, in float32."""
    torch.manual_seed(0)
    backbone = make_backbone(config, sizes.device)
    head = sizes.head(structure)
    head_sizes = HeadSizes(
        feature_dim=backbone.hidden_dim,
        action_dim=len(NAMES),
        binary=(len(NAMES) - 1,),
        window_size=window,
        chunk_size=sizes.chunk,
    )
    processor = Processor(backbone, list(PIXELS), max_text_tokens=config.max_text_tokens)
    return VLAPolicy(backbone, HEADS.get(head.name)(head, head_sizes), structure, processor).to(sizes.device)


def instruction_of(policy: VLAPolicy, tokens: int) -> str:
    """Return words that the policy's tokenizer makes about so many tokens of."""
    backbone, text = policy.backbone, "p"
    while len(backbone.tokenize([backbone.prompt.format(instruction=text)])[0]) < tokens:
        text += "push"[len(text) % 4]
    return text


@dataclass
class Windows(RobotDataset):
    """As many windows as a step takes, of noise."""

    count: int
    sizes_of: Sizes
    instruction: str
    sizes: list[int] = field(init=False)
    weights: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes, self.weights = [self.count], [1.0]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        generator, w = np.random.default_rng(index), self.sizes_of.window
        steps = w + self.sizes_of.chunk - 1
        actions = generator.uniform(-0.65, 0.65, (steps, len(NAMES))).astype(np.float32)
        actions[:, -1] = np.where(actions[:, -1] > 0, 1, -1)
        return Sample(
            frames={view: generator.integers(0, 256, (w, p, p, 3), dtype=np.uint8) for view, p in PIXELS.items()},
            actions=actions,
            action_mask=np.ones(steps, dtype=bool),
            instruction=self.instruction[: len(self.instruction) - 3 * (index % 2)],
        )

    def location(self, index: int) -> str:
        """Name a window."""
        return f"made-up window {index}"

    def summary(self) -> str:
        """Say how many there are."""
        return f"{self.count} made-up windows"


def upstream_copies(policy: VLAPolicy, windows: int, sizes: Sizes) -> Callable[[], Any]:
    """Have a policy read its loss before backward, and return what copies the future frames that upstream does."""
    policy.register_forward_hook(lambda module, given, losses: losses["loss"].item() and None)
    pixels = 8 if sizes.tiny else IMAGE
    future = torch.zeros(2, windows, sizes.window, sizes.chunk, 3, pixels, pixels)
    return lambda: future.to(sizes.device)


@dataclass(frozen=True, kw_only=True)
class Acting:
    """How a policy of the ladder acts."""

    name: str
    structure: Structure = Structure.policy_head
    dtype: EngineDtype = EngineDtype.bf16
    compile: CompileMode = CompileMode.off
    cuda_graph: bool = False
    cache: FrameCache = FrameCache.exact


def make_engine(model: str, acting: Acting, sizes: Sizes, max_batch_size: int = 32) -> PolicyEngine:
    """Return an engine; interleaved windows are 8 frames long, since Kosmos has positions for 13."""
    backbone = BackboneConfig(name=model, size=ModelSize.tiny if sizes.tiny else ModelSize.full)
    window = sizes.window if acting.structure is Structure.policy_head else min(8, sizes.window)
    plan, data = DataPlan.of(data_config(), list(PIXELS)), statistics()
    return PolicyEngine(
        make_policy(backbone, acting.structure, sizes, window),
        list(zip(plan.sources, plan.normalizers({"calvin": data}), strict=True)),
        window_size=window,
        cache=acting.cache,
        config=EngineConfig(
            device=sizes.device,
            dtype=acting.dtype,
            compile=acting.compile,
            cuda_graph=acting.cuda_graph,
            max_batch_size=max_batch_size,
        ),
    )


def observations(policy: VLAPolicy, tokens: int) -> list[Observation]:
    """Return a few of what a robot sees."""
    generator, text = np.random.default_rng(0), instruction_of(policy, tokens)
    return [
        Observation(
            frames={view: generator.integers(0, 256, (p, p, 3), dtype=np.uint8) for view, p in PIXELS.items()},
            instruction=text,
        )
        for _ in range(16)
    ]
