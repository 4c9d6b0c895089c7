"""Every registered head at a size for tests: its config as `head=<name>` composes it, with smaller numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from composing import composed
from omegaconf import OmegaConf

from robovlms.config.policy import HeadConfig

SMALL = {
    "hidden_dim": 32, "num_layers": 2, "num_heads": 4, "dropout": 0.0, "num_train_steps": 20, "num_steps": 20,
    "vocab_size": 300,
}  # fmt: skip


def small_head(name: str, **changes: Any) -> HeadConfig:
    """Return a head's config; `changes` go before the small numbers, as far as the head has such an option."""
    config: HeadConfig = OmegaConf.to_object(composed(f"head={name}").head)  # type: ignore[assignment]
    wanted = {**SMALL, **changes}
    return replace(config, **{key: value for key, value in wanted.items() if hasattr(config, key)})
