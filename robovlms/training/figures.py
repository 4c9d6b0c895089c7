"""The pictures of a finished run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robovlms.reports.plots import plot_actions, plot_training
from robovlms.training.validation import VALIDATION_ACTIONS


def plot_run(run_folder: Path, action_names: list[str]) -> dict[str, list[Path]]:
    """Draw a run's curves and its predicted against its target actions into `plots/`; give titles and files."""
    folder = run_folder / "plots"
    folder.mkdir(exist_ok=True)
    figures = {"Training": plot_training(run_folder / "metrics.jsonl", folder)}
    if (run_folder / VALIDATION_ACTIONS).is_file():
        with np.load(run_folder / VALIDATION_ACTIONS, allow_pickle=False) as file:
            path = plot_actions(file["predicted"], file["target"], file["mask"], action_names, folder / "actions.png")
        figures["Predicted and target actions, validation"] = [path]
    return figures
