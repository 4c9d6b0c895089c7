"""What a results.json says of its own making, and whether it still holds: its digits, its rates, its episodes."""

from __future__ import annotations

import json
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from robovlms.evaluation.analysis.comparison import LEVEL
from robovlms.evaluation.analysis.paired import sign_test
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.files import digest
from robovlms.hub.repository import address_of

if TYPE_CHECKING:
    from robovlms.evaluation.results import Results

CPUS = Path("/proc/cpuinfo")
SECRET = re.compile(r"^(\W*server_token=).*", re.DOTALL)


class Certificate(TypedDict):
    """How results were made; versions, config and episodes stand beside it."""

    checkpoint: str  # its folder, its address on the Hub with the commit, or that of the server that it acted behind
    checkpoint_digest: str  # SHA-256 over the SHA-256 of all its files
    renderer: str
    machine: str  # processor and accelerator: others may round otherwise
    seeds: list[int]  # of the episodes
    command: str
    content_digest: str  # SHA-256 of everything else in the file


class PolicyIdentity(NamedTuple):
    """What results say of the policy that they are of."""

    place: str  # the checkpoint's folder, or the address of the server that it acts behind
    digest: str  # of the checkpoint
    device: str  # where it runs
    versions: dict[str, str]  # that it depends on, besides those of this process


def certify(
    results: Results, *, checkpoint: Path | str, checkpoint_digest: str, renderer: str, device: str, argv: Sequence[str]
) -> Results:
    """Return results with a certificate.

    Args:
        results: what `summarize` returned.
        checkpoint: its folder, or the address of the server that it acts behind.
        checkpoint_digest: of what is in it.
        renderer: what drew the pictures.
        device: where the policy ran.
        argv: the command; a token in it is not written down.
    """
    certificate: Certificate = {
        "checkpoint": address_of(checkpoint) if isinstance(checkpoint, Path) else checkpoint,
        "checkpoint_digest": checkpoint_digest,
        "renderer": renderer,
        "machine": machine_name(device),
        "seeds": sorted({episode["seed"] for episode in results["episodes"]}),
        "command": shlex.join(SECRET.sub(r"\1***", argument) for argument in argv),
        "content_digest": "",
    }
    return seal({**results, "certificate": certificate})


def seal(results: Results) -> Results:
    """Return results whose certificate, if there is one, has the digest of what they hold now."""
    if "certificate" not in results:
        return results
    certificate: Certificate = {**results["certificate"], "content_digest": content_digest(results)}
    return {**results, "certificate": certificate}


def content_digest(results: Mapping[str, Any] | Results) -> str:
    """Return the SHA-256 of everything in results but that digest itself."""
    certificate = {key: value for key, value in results["certificate"].items() if key != "content_digest"}
    return digest(json.dumps({**results, "certificate": certificate}, sort_keys=True))


def machine_name(device: str) -> str:
    """Return the processor, and the accelerator if there is one."""
    text = CPUS.read_text(encoding="utf-8") if CPUS.is_file() else ""
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return ", ".join(dict.fromkeys([models[0] if models else platform.machine(), device]))


def compare_replay(
    recorded: Sequence[EpisodeResult], replayed: Sequence[EpisodeResult], *, is_exact: bool
) -> list[str]:
    """List what speaks against recorded episodes that were played again; []: nothing.

    Args:
        recorded: of the file.
        replayed: the same again.
        is_exact: every one must end in the same steps; else they are a sample for an exact sign test.
    """
    pairs = list(zip(recorded, replayed, strict=True))
    if is_exact:
        return [
            f"{was.episode} reached {was.reached} goals in {_steps(was)} steps, now {now.reached} in {_steps(now)}"
            for was, now in pairs
            if (was.goal_steps, was.steps) != (now.goal_steps, now.steps)
        ]
    wins, losses = (sum(sign * (was.reached - now.reached) > 0 for was, now in pairs) for sign in (1, -1))
    p_value = sign_test(wins, losses)
    if p_value > LEVEL:
        return []
    return [
        f"of {len(pairs)} episodes {wins} reached more goals than they do now and {losses} fewer (exact sign test, "
        f"p = {p_value:.2g})"
    ]


def _steps(result: EpisodeResult) -> str:
    return "an unknown number of" if result.steps is None else str(result.steps)
