"""Whether results still hold: their digits, their rates, their checkpoint, and a random share of their episodes."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from robovlms.config.closed_loop import EvaluationConfig, SimConfig
from robovlms.config.commands import is_address
from robovlms.config.schemas import schema_of
from robovlms.errors import UserError
from robovlms.evaluation.analysis.certificate import compare_replay, content_digest, machine_name
from robovlms.evaluation.analysis.reading import read_results
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.evaluation.folder import RESULTS
from robovlms.evaluation.policies.checkpoint import CheckpointPolicy
from robovlms.evaluation.results import environment_versions, summarize
from robovlms.evaluation.share import Share
from robovlms.evaluation.stage import Stage, find_server
from robovlms.hub.repository import is_on_hub
from robovlms.policy.checkpoint import read_typed, resolve_checkpoint
from robovlms.policy.manifest import DamagedCheckpointError, check_checkpoint, checkpoint_digest
from robovlms.registry import SIMULATORS
from robovlms.sims.base import Episode, Simulator

Play: TypeAlias = Callable[[Sequence[Episode]], list[EpisodeResult]]


@dataclass(frozen=True)
class Verdict:
    """Whether results hold, and why."""

    faults: list[str]  # []: they hold
    checked: list[str]

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against them."""
        return not self.faults

    def __str__(self) -> str:
        lines = [*(f"checked: {each}" for each in self.checked), *(f"FAULT: {each}" for each in self.faults)]
        return "\n".join([*lines, "the results hold" if self.holds else "the results do NOT hold"])


def verify(
    path: Path,
    share: float,
    checkpoint: str = "",
    *,
    server: str | None = None,
    server_token: str | None = None,
    server_patience_s: float = 60.0,
) -> Verdict:
    """Check results without and, where nothing is found so, with their policy.

    Args:
        path: of results.json, or of the folder of the evaluation.
        share: of the episodes that are played again, at least one.
        checkpoint: where it is now; "", without `server`: where it was.
        server: address of one that serves it now.
        server_token: that the server demands.
        server_patience_s: with the server.

    Raises:
        ConnectionError: nobody listens there.
        UserError: it is no such file, one without a certificate, or its checkpoint is not there.
    """
    results = read_results(path / RESULTS if path.is_dir() else path, must_hold=False)
    if "certificate" not in results:
        raise UserError(f"{path} has no certificate: it was written by an earlier version. Evaluate again.")
    checked = ["digest of the file, rates against episodes"]
    if faults := content_faults(results):
        return Verdict(faults, checked)
    certificate = results["certificate"]
    place, expected = server or checkpoint or certificate["checkpoint"], certificate["checkpoint_digest"]
    served = find_server(place, server_token, server_patience_s) if is_address(place) else None
    folder = Path(place)
    if served is not None:
        checked.append(f"the checkpoint that {place} serves")
        faults = digest_faults(place, served.identity.digest, expected)
    else:
        folder = resolve_checkpoint(folder) if is_on_hub(folder) else folder
        if not folder.is_dir():
            raise UserError(f"the checkpoint {place} is not there: say where it is now, checkpoint=... or server=...")
        checked.append(f"files of {folder}")
        faults = checkpoint_faults(folder, expected)
    if faults:
        return Verdict(faults, checked)
    config = results["config"]
    sim: SimConfig = read_typed(schema_of("sim", config["sim"]["name"]), config["sim"])
    evaluation = replace(read_typed(EvaluationConfig, config["evaluation"]), num_workers=1)
    simulator: Simulator = SIMULATORS.get(sim.name)(sim)
    policy = served or CheckpointPolicy.of(folder, folder, evaluation, simulator)
    policy.check(simulator, evaluation)
    simulator.close()
    stage = Stage(policy, simulator, Share())
    with TemporaryDirectory() as journal:
        again = replay(
            results,
            share,
            lambda episodes: stage.play(evaluation, episodes, Path(journal)),
            {
                "renderer": simulator.renderer,
                "machine": machine_name(policy.identity.device),
                **environment_versions(simulator.packages),
                **policy.identity.versions,
            },
        )
    return Verdict(again.faults, [*checked, *again.checked])


def checkpoint_faults(folder: Path, expected: str) -> list[str]:
    """List what tells a checkpoint from the one with the digest `expected`."""
    try:
        check_checkpoint(folder)
        found = checkpoint_digest(folder)
    except DamagedCheckpointError as error:
        return [str(error)]
    return digest_faults(str(folder), found, expected)


def digest_faults(place: str, found: str, expected: str) -> list[str]:
    """List what tells the checkpoint at a place from the one with the digest `expected`."""
    return [] if found == expected else [f"{place} is another checkpoint: its digest is {found}"]


def content_faults(results: Mapping[str, Any]) -> list[str]:
    """List where a file contradicts itself."""
    faults = []
    if content_digest(results) != results["certificate"].get("content_digest"):
        faults.append("something in it was changed after it was written: its digest does not fit")
    try:
        episodes = [EpisodeResult.from_json(row) for row in results["episodes"]]
        counted = json.loads(json.dumps(summarize(episodes, config={}, versions={})))
    except (ValueError, TypeError, KeyError) as error:
        return [*faults, f"an episode cannot be read ({type(error).__name__}: {error})"]
    for key in ("language", "instructions"):
        faults += [
            f"{place} is not what the episodes give" for place in differences(results.get(key), counted[key], key)
        ]
    return faults


def differences(a: Any, b: Any, place: str) -> list[str]:
    """Name the places where two JSON values differ, numbers in more than their last digits."""
    if isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12):
        return []
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            each for key in dict.fromkeys([*a, *b]) for each in differences(a.get(key), b.get(key), f"{place}.{key}")
        ]
    return [] if a == b else [place]


def replay(results: Mapping[str, Any], share: float, play_again: Play, here: Mapping[str, str]) -> Verdict:
    """Play a random share of the episodes again.

    Args:
        results: of a file.
        share: of the episodes that did not end in an error.
        play_again: plays some.
        here: renderer, machine and versions of what plays.
    """
    recorded = [EpisodeResult.from_json(row) for row in results["episodes"] if row["error"] is None]
    count = min(len(recorded), max(1, round(share * len(recorded))))
    chosen = random.SystemRandom().sample(recorded, count)  # nobody can know before which
    replayed = play_again([result.episode for result in chosen])
    was = {**results["versions"], **{key: results["certificate"][key] for key in ("renderer", "machine")}}
    keys = [key for key in {**was, **here} if was.get(key) != here.get(key)]
    different = [f"{key} was {was.get(key)}, is {here.get(key)}" for key in keys]
    faults = compare_replay(chosen, replayed, is_exact=not different)
    config = results["config"]
    shares_batches = config.get("server") or config.get("evaluation", {}).get("num_workers", 1) > 1
    if faults and not different and shares_batches:
        different = ["others shared the batches, which may round otherwise, and not all steps are the same"]
        faults = compare_replay(chosen, replayed, is_exact=False)
    how = f"by a test of their successes, as {'; '.join(different)}" if different else "step by step"
    return Verdict(faults, [f"{count} of {len(recorded)} episodes, played again, {how}"])
