"""Image-text conversations beside the robot's data."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.choices import MISSING, ask
from robovlms.errors import UserError


@dataclass(kw_only=True)
class CotrainConfig:
    """Conversations in LLaVA's format, so that a VLM that learns to act keeps what it knew.

    loss = action loss + weight * cross-entropy of the answers' tokens.
    """

    name: str = MISSING
    file: str = ask("/path/to/llava_v1_5_mix665k.json")  # JSON array or JSON lines
    image_folder: str = ask("/path/to/images")  # that the file's image paths start from
    batch_size: int = 16  # global: conversations per optimizer step over all processes
    weight: float = 0.05  # arXiv:2412.14058's code, vl_cotrain_ratio
    question: str = "Question: {text} Answer:"  # how the family writes what a human says
    answer: str = " {text}"  # and what it says itself; its end token follows
    max_tokens: int = 512  # longer conversations are cut
    skip_bad: bool = False  # leave out records that cannot be used, counted, instead of stopping
    num_workers: int = 2  # loader processes per rank; 0 reads in the training process

    def __post_init__(self) -> None:
        for key in ("batch_size", "max_tokens"):
            if getattr(self, key) < 1:
                raise UserError(f"cotrain.{key}={getattr(self, key)} must be at least 1.")
        if self.weight <= 0:
            raise UserError(f"cotrain.weight={self.weight} must be above 0; cotrain=null turns it off.")
        for key in ("question", "answer"):
            if getattr(self, key).count("{text}") != 1:
                raise UserError(f"cotrain.{key}={getattr(self, key)!r} must contain {{text}} once.")
