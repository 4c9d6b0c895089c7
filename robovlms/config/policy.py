"""What the policy is: backbone, head, structure, window and views."""

from __future__ import annotations

from dataclasses import dataclass, field

from robovlms.choices import (
    MISSING,
    ArmLoss,
    FlowSolver,
    FrameCache,
    HeadKind,
    ModelSize,
    QueryInit,
    Structure,
    WeightType,
)


@dataclass(kw_only=True)
class LoRAConfig:
    """Low-rank adapters instead of full weights (arXiv:2106.09685)."""

    rank: int = 0  # 0 = no adapters
    alpha: int = 16  # the adapter's output is scaled by alpha / rank
    dropout: float = 0.0
    parts: list[str] = field(default_factory=lambda: ["text"])  # of vision, text
    modules: list[str] = field(
        default_factory=list
    )  # ends of the linear layers' names, e.g. [q_proj, v_proj]; empty: all

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"backbone.lora.rank={self.rank} must be at least 0 (no adapters).")


@dataclass(kw_only=True)
class BackboneConfig:
    """A vision-language model and what of it is trained."""

    name: str = MISSING
    checkpoint: str | None = None  # hub id or local folder
    size: ModelSize = ModelSize.full
    random_init: bool = False  # the checkpoint's architecture and tokenizer, random weights
    prompt: str = "{instruction}"
    max_text_tokens: int = 256
    freeze_vision: bool = False
    freeze_text: bool = False
    freeze_embeddings: bool = False
    train_text_layers: int | None = None  # only the last so many decoder layers are trained; unset: all
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    gradient_checkpointing: bool = False
    attn_implementation: str = "sdpa"
    weights: WeightType = WeightType.fp32
    resample: int | None = None  # tokens per view, by a perceiver trained from scratch; unset: the family's own


@dataclass(kw_only=True)
class NanoBackboneConfig(BackboneConfig):
    """Sizes of the embedded few-million-parameter VLM."""

    image_size: int = MISSING  # px, a multiple of 16
    hidden_dim: int = MISSING
    num_layers: int = MISSING
    num_heads: int = MISSING


@dataclass(kw_only=True)
class HeadConfig:
    """Action head: what it is and how its loss is weighed."""

    name: str = MISSING
    num_queries: int = 1  # learned queries per frame
    query_init: QueryInit = QueryInit.zero
    loss: ArmLoss = ArmLoss.huber
    gripper_weight: float = 0.01  # loss = arm + gripper_weight * gripper (arXiv:2412.14058, lambda)
    arm_weights: list[float] = field(default_factory=list)  # of the arm's entries in the loss; empty: all alike
    hidden_dim: int = 1024

    @property
    def kind(self) -> HeadKind:
        """Say what the head makes of a window."""
        return HeadKind.frame


@dataclass(kw_only=True)
class MLPHeadConfig(HeadConfig):
    """Each frame decoded on its own."""

    plain: bool = False  # three linear layers of hidden_dim instead of upstream's projection and decoders


@dataclass(kw_only=True)
class LSTMHeadConfig(HeadConfig):
    """Recurrent policy head."""

    num_layers: int = 4
    dropout: float = 0.0

    @property
    def kind(self) -> HeadKind:
        """Say that it has a memory."""
        return HeadKind.memory


@dataclass(kw_only=True)
class GPTHeadConfig(HeadConfig):
    """Transformer policy head."""

    num_layers: int = 8
    num_heads: int = 8
    dropout: float = 0.0

    @property
    def kind(self) -> HeadKind:
        """Say that it has a memory."""
        return HeadKind.memory


@dataclass(kw_only=True)
class DenoisingHeadConfig(HeadConfig):
    """A small transformer that carries noise to the chunk."""

    num_layers: int = 4
    num_heads: int = 8
    dropout: float = 0.0
    num_steps: int = 10  # from noise to action


@dataclass(kw_only=True)
class FlowHeadConfig(DenoisingHeadConfig):
    """Flow matching over the chunk."""

    solver: FlowSolver = FlowSolver.euler


@dataclass(kw_only=True)
class DiffusionHeadConfig(DenoisingHeadConfig):
    """Diffusion over the chunk."""

    num_train_steps: int = 100
    eta: float = 0.0  # 0: DDIM; 1 and num_steps = num_train_steps: DDPM


@dataclass(kw_only=True)
class TokensHeadConfig(HeadConfig):
    """Actions as words at the tail of the vocabulary."""

    num_bins: int = 256  # edges from -1 to 1
    parallel: bool = False  # all slots of a chunk in one pass, instead of token by token
    discrete: bool = True  # false: the slots' values are regressed with head.loss (needs parallel)

    @property
    def kind(self) -> HeadKind:
        """Say how the VLM writes the chunk."""
        return HeadKind.slots if self.parallel else HeadKind.tokens


@dataclass(kw_only=True)
class FastHeadConfig(HeadConfig):
    """Chunks as tokens of their compressed cosine transform."""

    tokenizer: str | None = None  # folder of a published one; unset: fitted to the training set
    vocab_size: int = 1024
    scale: float = 10.0  # of the coefficients before they are rounded; larger: finer and longer
    max_tokens: int = 64  # of a chunk in rollout

    @property
    def kind(self) -> HeadKind:
        """Say that the VLM writes tokens."""
        return HeadKind.tokens


@dataclass(kw_only=True)
class StructureConfig:
    """Formulation of the policy."""

    name: Structure = MISSING
    cache: FrameCache = FrameCache.exact  # of interleaved streaming


@dataclass(kw_only=True)
class WindowConfig:
    """History and prediction lengths, in control steps."""

    window_size: int = MISSING
    chunk_size: int = MISSING


@dataclass(kw_only=True)
class ViewConfig:
    """Cameras the policy looks through, by our names; the data config maps them to the data set's keys."""

    views: list[str] = MISSING
