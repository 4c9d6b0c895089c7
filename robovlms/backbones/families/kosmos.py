"""Kosmos-2 (arXiv:2306.14824), RoboVLMs' best backbone."""

from __future__ import annotations

from robovlms.backbones.families._kosmos_shared import LatentDecoder
from robovlms.registry import BACKBONES


@BACKBONES.register("kosmos")
class Kosmos(LatentDecoder):
    """Reads `<s> [64 latents per view] <grounding> An image of a robot {instruction} [queries]`.

    As upstream, views stand right after <s>, without Kosmos-2's `<image>` and `</image>` markers. Upstream's closing
    </s> is left out: it follows the query, and in a causal decoder it changes nothing (for t > 1, later frames saw it:
    `kosmos_upstream`).

    Source: RoboVLMs robovlms/model/backbone/robokosmos.py, data/data_utils.py.
    """
