"""What the policy is: backbone, head, structure, window and views."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum, auto

from robovlms.config.choices import (
    MISSING,
    ArmLoss,
    FrameCache,
    HeadKind,
    ModelSize,
    QueryInit,
    Structure,
    WeightType,
)
from robovlms.config.fields import number, template
from robovlms.config.schemas import schema
from robovlms.errors import UserError


@dataclass(frozen=True)
class Checkpointing:
    """Which activations a backbone computes again in the backward pass instead of keeping them."""

    every: int = 0  # every so many-th layer as a whole; 0: none
    attention: bool = False  # the attention of every layer

    @classmethod
    def parse(cls, text: str, option: str = "backbone.checkpointing") -> Checkpointing:
        """Read `none`, `attention`, `every_n:<layers>` or `full`.

        Raises:
            UserError: anything else; names `option` and the forms.
        """
        known = {"none": cls(), "attention": cls(attention=True), "full": cls(every=1)}
        match = re.fullmatch(r"every_n:\s*([1-9][0-9]{0,3})", text)
        if text not in known and match is None:
            raise UserError(
                f"{option}={text} does not exist: write none, attention, full, or e.g. every_n:2 for every second "
                "layer."
            )
        return known[text] if match is None else cls(every=int(match[1]))


@dataclass(kw_only=True)
class LoRAConfig:
    """Low-rank adapters instead of full weights (arXiv:2106.09685)."""

    rank: int = number(0, at_least=0)  # 0 = no adapters
    alpha: int = number(16, at_least=1)  # the adapter's output is scaled by alpha / rank
    dropout: float = number(0.0, at_least=0, below=1)
    parts: list[str] = field(default_factory=lambda: ["text"])  # of vision, text
    modules: list[str] = field(
        default_factory=list
    )  # ends of the linear layers' names, e.g. [q_proj, v_proj]; empty: all


class FrozenQuantization(StrEnum):
    """How frozen linear layers are stored while adapters beside them are trained."""

    nf4 = auto()  # 4.13 bits a weight (QLoRA, arXiv:2305.14314)


@schema("backbone/base")
@dataclass(kw_only=True)
class BackboneConfig:
    """A vision-language model and what of it is trained."""

    name: str = MISSING
    checkpoint: str | None = None  # hub id or local folder
    size: ModelSize = ModelSize.full
    random_init: bool = False  # the checkpoint's architecture and tokenizer, random weights
    prompt: str = template("{instruction}", "instruction")
    max_text_tokens: int = number(256, at_least=1)
    freeze_vision: bool = False
    freeze_text: bool = False
    freeze_embeddings: bool = False
    # only the last so many decoder layers are trained; unset: all
    train_text_layers: int | None = number(None, at_least=1)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    # what the backward pass computes again instead of keeping it: none | attention | every_n:<layers> | full
    checkpointing: str = "none"
    attn_implementation: str = "sdpa"
    weights: WeightType = WeightType.fp32
    quantization: FrozenQuantization | None = None  # of the linear layers that are frozen; unset: as `weights` says
    # tokens per view, by a perceiver trained from scratch; unset: the family's own
    resample: int | None = number(None, at_least=1)

    def check(self, option: str) -> None:
        """Refuse a way of checkpointing that cannot be read."""
        Checkpointing.parse(self.checkpointing, f"{option}.checkpointing")


@schema("head/base")
@dataclass(kw_only=True)
class HeadConfig:
    """Action head: what it is and how its loss is weighed."""

    name: str = MISSING
    num_queries: int = number(1, at_least=1)  # learned queries per frame
    query_init: QueryInit = QueryInit.zero
    loss: ArmLoss = ArmLoss.huber
    # loss = arm + gripper_weight * gripper (arXiv:2412.14058, lambda)
    gripper_weight: float = number(0.01, at_least=0, at_most=1e6)
    # of the arm's entries in the loss; empty: all alike
    arm_weights: list[float] = number(list, at_least=0, at_most=1e6)
    hidden_dim: int = number(1024, at_least=1)
    # of a mixture over robots: every source has projectors of its own beside those that all share
    per_source: bool = False

    @property
    def kind(self) -> HeadKind:
        """Say what the head makes of a window."""
        return HeadKind.frame


@dataclass(kw_only=True)
class StructureConfig:
    """Formulation of the policy."""

    name: Structure = MISSING
    cache: FrameCache = FrameCache.exact  # of interleaved streaming


@dataclass(kw_only=True)
class WindowConfig:
    """History and prediction lengths, in control steps."""

    window_size: int = number(at_least=1)
    chunk_size: int = number(at_least=1)


@dataclass(kw_only=True)
class ViewConfig:
    """Cameras the policy looks through, by our names; the data config maps them to the data set's keys."""

    views: list[str] = MISSING
