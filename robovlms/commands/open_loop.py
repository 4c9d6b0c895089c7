"""Recorded episodes, and what a checkpoint would have done in them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from robovlms.actions.checks import Finding, Severity
from robovlms.actions.plan import DataPlan, Source
from robovlms.config.choices import CheckpointChoice, Execution
from robovlms.config.closed_loop import OpenLoopConfig
from robovlms.config.data import DataConfig, MixtureDataConfig
from robovlms.config.run import TrainConfig
from robovlms.data.base import Reader, unlabelled
from robovlms.data.loading.loader import Collator
from robovlms.data.opening import join_sources, open_sources
from robovlms.data.remote import fetch
from robovlms.data.splits import evenly_spaced
from robovlms.data.windows import WindowDataset
from robovlms.errors import UserError
from robovlms.evaluation.open_loop import Recording, copied, entry_errors, replay
from robovlms.files import write_text
from robovlms.inspection.episode import to_jpeg
from robovlms.policy.checkpoint import (
    CONFIG,
    choose_checkpoints,
    is_checkpoint,
    load_config,
    load_stats,
    resolve_checkpoint,
    run_folder_of,
)
from robovlms.policy.engine import PolicyEngine
from robovlms.reports.open_loop_page import Moment, Section, write_open_loop_page
from robovlms.training.checkpoints.run_folder import OPEN_LOOP
from robovlms.training.follow import follow
from robovlms.training.symptoms import Probe, grippers_of, ignored_inputs, still_grippers
from robovlms.types import Observation, Sample

log = logging.getLogger(__name__)

BLOCK = 32  # steps that are read at once
COPIED = 0.5  # of the distance to what was recorded, that predictions may be close to the last action


def open_loop(config: OpenLoopConfig) -> list[Path]:
    """Write a page for every checkpoint that is asked for, with its numbers beside it; return the pages.

    Raises:
        FileNotFoundError: no checkpoint there, or its data lie elsewhere now.
        UserError: the data or the policy does not allow what is asked.
    """
    path, choice = Path(config.checkpoint), CheckpointChoice.parse(config.checkpoints)
    if is_checkpoint(path) and choice.every is not None:
        raise UserError(
            f"checkpoints={config.checkpoints} chooses among those of a run, and checkpoint={path} is one of them: "
            "give the run, or leave checkpoints out."
        )
    found: Iterator[Path] = follow(path, choice) if config.watch else iter(choose_checkpoints(path, choice))
    run_folder = path if config.watch else run_folder_of(resolve_checkpoint(path))
    return [write_checkpoint(config, checkpoint, run_folder) for checkpoint in found]


def write_checkpoint(config: OpenLoopConfig, checkpoint: Path, run_folder: Path) -> Path:
    """Write the page of one checkpoint of a run and return its path."""
    trained = load_config(checkpoint / CONFIG)
    views = trained.view.views
    plan = DataPlan.of(fetch(moved(trained.data, config.data.root), views), views)
    windows = open_sources(plan, trained.window, config.split.value)
    sources = plan.sources if config.source is None else [plan.find(config.source, option="source")]
    if not any(len(windows[source.number]) for source in sources):
        raise UserError(
            f"no episode is kept for {config.split} (data.validation_fraction=0, or tasks of one episode each): set "
            "split=train."
        )
    engine = PolicyEngine.from_checkpoint(checkpoint, config.engine)
    sections = [
        _section(config, trained, engine, windows[source.number]) for source in sources if len(windows[source.number])
    ]
    dataset, normalizers = join_sources(plan, windows, config.split.value), plan.normalizers(load_stats(checkpoint))
    probe = Probe(dataset, Collator(engine.policy.processor, normalizers, trained.window), trained.device_batch_size)
    with torch.autocast(engine.device.type, torch.bfloat16, enabled=engine.dtype is torch.bfloat16):
        effects = probe.measure(engine.policy)
    where = f"{config.split} episodes"
    found = [*ignored_inputs(effects, where, sees_state=bool(plan.proprio_names)).values()]
    found += [finding for section in sections for finding in _findings(section, where)]
    folder = Path(config.output_dir or run_folder / OPEN_LOOP)
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{config.split.capitalize()} episodes, {checkpoint}."
    title = f"{trained.name}, {checkpoint.name}, open loop"
    page = write_open_loop_page(folder / f"{checkpoint.name}.html", sections, found, title=title, about=about)
    numbers = {section.source: [asdict(error) for error in section.errors] for section in sections}
    told = {"entries": numbers, "effects": effects, "findings": [asdict(finding) for finding in found]}
    write_text(page.with_suffix(".json"), json.dumps(told, indent=2) + "\n")
    for finding in found:
        log.warning("%s", finding)
    return page


def moved(data: DataConfig, root: str | None) -> DataConfig:
    """Return a data config whose data lie at `root`, where that is given.

    Raises:
        UserError: sources of a mixture do not lie below one folder.
    """
    if root is None:
        return data
    if not isinstance(data, MixtureDataConfig):
        return replace(data, root=root)
    old, sources = Path(data.root), dict[str, DataConfig]()
    for name, source in data.sources.items():
        if not data.root or not Path(source.root).is_relative_to(old):
            raise UserError(
                f"data.root={root}: data.sources.{name}.root={source.root} does not lie below the mixture's "
                f"data.root={data.root}, so where it is now is not known. Put it there."
            )
        sources[name] = replace(source, root=str(Path(root) / Path(source.root).relative_to(old)))
    return replace(data, root=root, sources=sources)


class RecordedEpisode(Recording):
    """An episode of a data set, of which a block of steps is read at a time."""

    def __init__(self, reader: Reader, source: Source, episode: int, max_steps: int) -> None:
        one = WindowDataset(reader, source, window_size=1, chunk_size=1)
        count = min(len(one.windows(episode)), max_steps)
        whole = WindowDataset(reader, source, window_size=1, chunk_size=count)
        self._first_step = whole.windows(episode)[0]
        self._blocks = WindowDataset(reader, source, window_size=min(BLOCK, count), chunk_size=1)
        self._block: tuple[int, Sample] | None = None  # the newest, and its first step
        self._first_block, self._last_block = self._blocks.windows(episode)[0], count - self._blocks.window_size
        self.instruction = reader.episodes[episode].instruction
        self.title = reader.location(episode, *whole.converter.starts(np.array([0, count - 1])).tolist())
        self.actions = whole[self._first_step].actions

    def observation(self, step: int) -> Observation:
        """Return what was seen at a step; fast in the order of the steps."""
        size = self._blocks.window_size
        first = min(step - step % size, self._last_block)
        if self._block is None or self._block[0] != first:
            self._block = first, self._blocks[self._first_block + first]
        sample, row = self._block[1], step - first
        proprio = sample.proprio if sample.state is None else sample.state  # all that a robot of the source sends
        return Observation(
            frames={view: frames[row] for view, frames in sample.frames.items()},
            instruction=self.instruction,
            proprio=None if proprio is None else proprio[row],
        )


def _section(config: OpenLoopConfig, trained: TrainConfig, engine: PolicyEngine, windows: WindowDataset) -> Section:
    """Replay episodes of one source, evenly spread."""
    reader, source, asked = windows.reader, windows.source, trained.evaluation
    usable = sorted(set(range(len(reader.episodes))) - unlabelled(reader.episodes).keys())
    chosen = [usable[i] for i in evenly_spaced(len(usable), min(config.episodes, len(usable))).tolist()]
    recordings = [RecordedEpisode(reader, source, episode, config.max_steps) for episode in chosen]
    execution = config.execution or asked.execution
    asks_always = execution in (Execution.first, Execution.ensemble)
    steps = config.execute_steps or (1 if asks_always else min(asked.execute_steps, trained.window.chunk_size))
    log.info("%s: replaying %d of %d episodes", source.name, len(chosen), len(usable))
    episodes = replay(engine, source.name, recordings, execution=execution, execute_steps=steps)
    return Section(
        source=source.name,
        hz=source.contract.control_hz,
        execute_steps=steps,
        errors=entry_errors(episodes, source.contract.names, source.contract.binary),
        episodes=episodes,
        moments=[_moments(recording, config.pictures) for recording in recordings],
    )


def _moments(recording: Recording, count: int) -> list[Moment]:
    """Return pictures of some steps, the first and the last among them."""
    steps = np.unique(np.linspace(0, len(recording.actions) - 1, count).round().astype(int)).tolist()
    return [
        Moment(
            step=step,
            pictures={view: to_jpeg(frame) for view, frame in recording.observation(step).frames.items()},
        )
        for step in steps
    ]


def _findings(section: Section, where: str) -> Sequence[Finding]:
    """Return what the replayed episodes of a source say of what the policy has not learned."""
    where = f"{section.source}, {where}"
    continuous = [place for place, error in enumerate(section.errors) if not error.is_binary]
    explained = [error.explained for error in section.errors if error.explained is not None]
    found = []
    if explained and np.mean(explained) <= 0:
        what = "the policy is no better than the mean action of these very episodes, which a policy cannot know"
        to_do = "Look at the curves: is an entry shifted, scaled or of another sign? If not, train longer, or on more."
        found.append(Finding(severity=Severity.warning, what=what, where=where, to_do=to_do))
    share = copied(section.episodes, continuous)
    if share is not None and share < COPIED:
        what = f"the last action is copied: predictions are {share:.0%} as far from it as from what was recorded"
        to_do = "Hide what tells it (data.proprio_seen, window.window_size=1), or predict longer chunks."
        found.append(Finding(severity=Severity.warning, what=what, where=where, to_do=to_do))
    predicted, recorded = (
        np.concatenate([getattr(episode, name) for episode in section.episodes]) for name in ("predicted", "recorded")
    )
    grippers = grippers_of([error.name for error in section.errors])
    return [*found, *still_grippers(predicted, recorded, grippers, where).values()]
