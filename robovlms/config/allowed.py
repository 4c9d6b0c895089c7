"""Which head goes with which structure, and why the others do not: the one place that says so."""

from __future__ import annotations

from robovlms.choices import HeadKind, Structure
from robovlms.config.policy import HeadConfig, StructureConfig, WindowConfig

REFUSED = {
    (Structure.one_step, HeadKind.memory): "a memory of frames has one frame to remember: use head=mlp",
    (
        Structure.policy_head,
        HeadKind.tokens,
    ): "the VLM reads every frame alone, so no history would reach the tokens it writes: use structure=one_step",
    (Structure.policy_head, HeadKind.slots): "the VLM reads every frame alone, so no history would reach the slots it "
    "fills: use structure=one_step or interleaved",
    (Structure.interleaved, HeadKind.memory): "the VLM has already seen the earlier frames: use head=mlp, or "
    "structure=policy_head",
    (
        Structure.interleaved,
        HeadKind.tokens,
    ): "chunks overlap, so the tokens taught at an earlier frame would tell "
    "later frames their own actions: use head.parallel=true or structure=one_step",
}


class NotAllowedError(ValueError):
    """Two options that do not go together; a sweep skips them."""


def check_structure(structure: StructureConfig, head: HeadConfig, window: WindowConfig) -> None:
    """Refuse a head that does not go with the structure, or a history that the structure does not see.

    Raises:
        NotAllowedError: says why, and what to choose.
    """
    if structure.name is Structure.one_step and window.window_size != 1:
        raise NotAllowedError(
            f"structure=one_step sees one frame, but window.window_size={window.window_size}: "
            "choose window=w1_c10 or structure=policy_head."
        )
    if reason := REFUSED.get((structure.name, head.kind)):
        raise NotAllowedError(f"structure={structure.name} with head={head.name} is not allowed: {reason}.")
