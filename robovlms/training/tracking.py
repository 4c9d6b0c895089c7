"""Where metrics go: always `metrics.jsonl` and the console; tensorboard and wandb by config. Main process only."""

from __future__ import annotations

import importlib.util
import json
import logging
import netrc
import os
import sys
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from robovlms.actions.checks import Finding, Severity
from robovlms.config.choices import TrackerName, WandbMode
from robovlms.config.training import TrackingConfig
from robovlms.errors import UserError
from robovlms.files import read_json_lines, write_text

log = logging.getLogger(__name__)

METRICS, WANDB_ID = "metrics.jsonl", "wandb_id.txt"
WARNINGS = "warnings.json"  # in the run folder: what the newest validation found


def check_trackers(config: TrackingConfig) -> None:
    """Find what a tracker lacks before data are read.

    Raises:
        UserError: a package is not installed, or wandb has no account to log to.
    """
    for tracker in config.trackers:
        if importlib.util.find_spec(tracker.value) is None:
            raise UserError(
                f"tracking={tracker.value} needs a package that is not installed: pip install -e "
                f"'.[{tracker.value}]', or choose tracking=console."
            )
    if TrackerName.wandb in config.trackers and wandb_mode(config) == "online" and not _is_logged_in():
        raise UserError(
            "tracking.wandb_mode=online needs an account: run `wandb login` or set WANDB_API_KEY, or choose "
            "tracking.wandb_mode=offline (`wandb sync` uploads later) or tracking=console."
        )


def wandb_mode(config: TrackingConfig) -> str:
    """Return `tracking.wandb_mode`, or what WANDB_MODE says instead: the machine may know better than the config.

    Raises:
        UserError: WANDB_MODE is no mode.
    """
    said = os.environ.get("WANDB_MODE", "")
    mode = {"": config.wandb_mode.value, "dryrun": "offline", "run": "online"}.get(said, said)
    known = [each.value for each in WandbMode]
    if mode not in known:
        raise UserError(f"WANDB_MODE={said} does not exist: set it to one of {', '.join(known)}, or unset it.")
    return mode


def _is_logged_in() -> bool:
    """Look where wandb does: environment, then ~/.netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):  # RuntimeError: there is no home
        return False


class _Sink(Protocol):
    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class _JsonLines:
    """One JSON object a line, flushed at once; rows after `start_step` of an interrupted run are dropped."""

    def __init__(self, path: Path, start_step: int) -> None:
        kept = [row for row in read_json_lines(path) if row.get("step", start_step + 1) <= start_step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _TensorBoard:
    def __init__(self, folder: Path, start_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=None if start_step is None else start_step + 1)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, config: TrackingConfig, folder: Path, run_config: dict[str, Any], name: str, group: str) -> None:
        import wandb

        mode: Any = wandb_mode(config)
        is_online = mode == "online"  # offline, wandb keeps the id and appends when it is synced
        try:
            self._run = wandb.init(
                project=config.project,
                name=name,
                group=group,
                dir=str(folder),
                mode=mode,
                config=run_config,
                id=_wandb_id(folder),
                resume="allow" if is_online else None,
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"wandb cannot start a run ({error}): check `wandb login` and the network, or choose "
                "tracking.wandb_mode=offline or tracking=console."
            ) from error

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def alert(self, finding: Finding) -> None:
        self._run.alert(title=finding.what[:64], text=f"{finding} ", level="WARN")

    def close(self) -> None:
        self._run.finish()


def _wandb_id(folder: Path) -> str:
    """Return the id of the run in `folder`: a resumed run goes on in the same wandb run."""
    path = folder / WANDB_ID
    if not path.is_file():
        write_text(path, uuid.uuid4().hex[:8] + "\n")
    return path.read_text(encoding="utf-8").strip()


class Tracker:
    """Fan metrics out to every sink, and keep the progress bar."""

    def __init__(
        self, config: TrackingConfig, folder: Path, run_config: dict[str, Any], *, start_step: int, total_steps: int
    ) -> None:
        self._sinks: list[_Sink] = [_JsonLines(folder / METRICS, start_step)]
        if TrackerName.tensorboard in config.trackers:
            self._sinks.append(_TensorBoard(folder / "tensorboard", start_step))
        if TrackerName.wandb in config.trackers:
            name = folder.resolve().name
            self._sinks.append(_WandB(config, folder, run_config, name, group=name))
        self._bar = self._progress_bar(start_step, total_steps) if config.progress and sys.stderr.isatty() else None
        self._total_steps = total_steps
        self._folder, self._warned = folder, set[str]()

    @staticmethod
    def _progress_bar(start_step: int, total_steps: int) -> Any:
        from tqdm import tqdm

        return tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True)

    def log(self, step: int, metrics: dict[str, float], *, eta_s: float) -> None:
        """Record the metrics of `step` and show the main ones."""
        for sink in self._sinks:
            sink.log(step, metrics)
        shown = {name.removeprefix("train/"): value for name, value in metrics.items() if name in _SHOWN}
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
            self._bar.update(step - self._bar.n)
        else:
            text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            log.info("step %d/%d  %s  ETA %s", step, self._total_steps, text, duration(eta_s))

    def log_validation(self, step: int, metrics: dict[str, float]) -> None:
        """Record validation metrics and print them on a line of their own, and on one for each source of a mixture."""
        for sink in self._sinks:
            sink.log(step, metrics)
        lines: dict[str, list[str]] = {}
        for name, value in metrics.items():
            lines.setdefault(name.rpartition("/")[0], []).append(f"{name} {value:.4g}")
        for line in lines.values():
            log.info("step %d  %s", step, "  ".join(line))

    def warn(self, found: Mapping[str, Finding]) -> None:
        """Log what a validation found, each kind once, and write it down; `load_warnings` reads it."""
        write_text(self._folder / WARNINGS, json.dumps({kind: asdict(each) for kind, each in found.items()}) + "\n")
        for kind, finding in found.items():
            if kind not in self._warned:
                self._warned.add(kind)
                log.warning("%s", finding)
                for sink in self._sinks:
                    if isinstance(sink, _WandB):
                        sink.alert(finding)

    def close(self) -> None:
        """Flush and close every sink."""
        if self._bar is not None:
            self._bar.close()
        for sink in self._sinks:
            sink.close()


def load_warnings(run_folder: Path) -> list[Finding]:
    """Return what the newest validation of a run found; nothing, where none looked."""
    path = run_folder / WARNINGS
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [Finding(**{**each, "severity": Severity(each["severity"])}) for each in found.values()]


class _Scores:
    """One JSON object a step, the newest that was logged of it; written by one process at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def log(self, step: int, metrics: dict[str, float]) -> None:
        rows = [row for row in read_json_lines(self._path) if row.get("step") != step]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in [*rows, {"step": step, **metrics}]))

    def close(self) -> None:
        pass


class EvaluationTracker:
    """Where a run's checkpoints are scored while it trains, by another process than the one that logs its training.

    Nothing is shared with that one: `evaluation/metrics.jsonl`, the tensorboard run `tensorboard/evaluation`, and a
    wandb run of its own in the group of the training's (wandb does not let two processes write one run).
    """

    def __init__(self, config: TrackingConfig, run_folder: Path, run_config: dict[str, Any]) -> None:
        folder, name = run_folder / "evaluation", run_folder.resolve().name
        folder.mkdir(exist_ok=True)
        self._sinks: list[_Sink] = [_Scores(folder / METRICS)]
        if TrackerName.tensorboard in config.trackers:
            self._sinks.append(_TensorBoard(run_folder / "tensorboard" / "evaluation"))
        if TrackerName.wandb in config.trackers:
            self._sinks.append(_WandB(config, folder, run_config, f"{name}_evaluation", group=name))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the scores of the checkpoint of `step`."""
        for sink in self._sinks:
            sink.log(step, metrics)

    def close(self) -> None:
        """Flush and close every sink."""
        for sink in self._sinks:
            sink.close()


_SHOWN = ("train/loss", "train/lr", "train/samples_per_s", "train/data_wait")


def duration(seconds: float) -> str:
    """Write seconds as h:mm:ss."""
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
