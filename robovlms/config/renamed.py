"""Keys that were called otherwise, so that old checkpoints and commands keep their meaning."""

from __future__ import annotations

RENAMED = {"data.parts": "data.sources", "evaluation.part": "evaluation.source"}
