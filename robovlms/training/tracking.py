"""Where metrics go: always `metrics.jsonl` and the console; tensorboard and wandb by config. Main process only."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any, Protocol

from robovlms.config.choices import TrackerName
from robovlms.config.training import TrackingConfig

log = logging.getLogger(__name__)


class _Sink(Protocol):
    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class _JsonLines:
    """One JSON object a line, flushed at once; rows after `start_step` of an interrupted run are dropped."""

    def __init__(self, path: Path, start_step: int) -> None:
        rows = (
            [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            if path.is_file()
            else []
        )
        kept = [row for row in rows if json.loads(row)["step"] <= start_step]
        path.write_text("".join(row + "\n" for row in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _TensorBoard:
    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, config: TrackingConfig, folder: Path, run_config: dict[str, Any]) -> None:
        import wandb

        mode: Any = config.wandb_mode.value
        self._run = wandb.init(project=config.project, name=folder.name, dir=str(folder), mode=mode, config=run_config)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()


class Tracker:
    """Fan metrics out to every sink, and keep the progress bar."""

    def __init__(
        self, config: TrackingConfig, folder: Path, run_config: dict[str, Any], *, start_step: int, total_steps: int
    ) -> None:
        self._sinks: list[_Sink] = [_JsonLines(folder / "metrics.jsonl", start_step)]
        try:
            if TrackerName.tensorboard in config.trackers:
                self._sinks.append(_TensorBoard(folder / "tensorboard", start_step))
            if TrackerName.wandb in config.trackers:
                self._sinks.append(_WandB(config, folder, run_config))
        except ImportError as error:
            raise ImportError(f'{error}: pip install -e ".[{error.name}]", or choose tracking=console.') from error
        self._bar = self._progress_bar(start_step, total_steps) if config.progress and sys.stderr.isatty() else None
        self._total_steps = total_steps

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
        """Record validation metrics and print them on a line of their own, and on one for each part of a mixture."""
        for sink in self._sinks:
            sink.log(step, metrics)
        lines: dict[str, list[str]] = {}
        for name, value in metrics.items():
            lines.setdefault(name.rpartition("/")[0], []).append(f"{name} {value:.4g}")
        for line in lines.values():
            log.info("step %d  %s", step, "  ".join(line))

    def close(self) -> None:
        """Flush and close every sink."""
        if self._bar is not None:
            self._bar.close()
        for sink in self._sinks:
            sink.close()


_SHOWN = ("train/loss", "train/lr", "train/samples_per_s", "train/data_wait")


def duration(seconds: float) -> str:
    """Write seconds as h:mm:ss."""
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
