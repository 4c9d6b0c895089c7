"""The pictures of a run: what the model is shown at its start, and curves and actions at its end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from robovlms.actions.plan import DataPlan
from robovlms.images.processor import Processor
from robovlms.reports.plots import plot_actions, plot_training
from robovlms.training.tracking import METRICS
from robovlms.training.validation import VALIDATION_ACTIONS
from robovlms.types import Batch

MAX_SAMPLES, MAX_FRAMES = 6, 4  # of the first batch, and the newest of each window
GAP, LINE = 4, 14  # px


def plot_run(run_folder: Path, plan: DataPlan) -> dict[str, list[Path]]:
    """Draw a run's curves and its predicted against its target actions into `plots/`; give titles and files.

    What is drawn already and no older than its numbers is not drawn again.
    """
    folder, metrics, actions = run_folder / "plots", run_folder / METRICS, run_folder / VALIDATION_ACTIONS
    folder.mkdir(exist_ok=True)
    drawn = [path for path in (folder / "loss.png", folder / "lr.png") if _is_current(path, metrics)]
    figures = {"Training": drawn or plot_training(metrics, folder)}
    if not actions.is_file():
        return figures
    path = folder / "actions.png"
    if not _is_current(path, actions):
        with np.load(actions, allow_pickle=False) as file:
            plot_actions(file["predicted"], file["target"], file["mask"], plan.action_names, plan.binary, path)
    return figures | {"Predicted and target actions, validation": [path]}


def _is_current(picture: Path, numbers: Path) -> bool:
    return picture.is_file() and picture.stat().st_mtime >= numbers.stat().st_mtime


@torch.no_grad()
def draw_first_batch(
    processor: Processor, batch: Batch, instructions: list[str], action_names: list[str], path: Path
) -> None:
    """Draw the first samples as the model sees them: resized, augmented, with instruction and target chunk.

    A row is a sample; beside one another stand its views, and of each the newest frames of the window. Below is the
    chunk that the newest frame is to be answered with, normalised, one line per action dimension; (x) is padding.
    """
    assert batch.actions is not None
    assert batch.action_mask is not None
    rows = min(len(batch), MAX_SAMPLES)
    images = processor.images(batch)[:rows, -MAX_FRAMES:].float().cpu()  # b w v c h x
    mean, std = (torch.tensor(value)[:, None, None] for value in (processor.image_spec.mean, processor.image_spec.std))
    pixels = ((images * std + mean).clamp(0, 1) * 255).byte().permute(0, 2, 1, 4, 5, 3).flatten(1, 2).numpy()
    size, count = pixels.shape[2], pixels.shape[1]
    texts = [
        [text, *_chunk_lines(target, mask, action_names)]
        for text, target, mask in zip(
            instructions[:rows], batch.actions[:rows, -1].tolist(), batch.action_mask[:rows, -1].tolist(), strict=True
        )
    ]
    font = ImageFont.load_default(size=12)
    width = max(count * (size + GAP), *(int(font.getlength(line)) + 2 * GAP for text in texts for line in text))
    height = size + LINE * len(texts[0]) + 3 * GAP
    picture = Image.new("RGB", (width, height * rows), "white")
    draw = ImageDraw.Draw(picture)
    for row, (frames, text) in enumerate(zip(pixels, texts, strict=True)):
        for column, frame in enumerate(frames):
            picture.paste(Image.fromarray(frame), (column * (size + GAP), row * height))
        draw.multiline_text((GAP, row * height + size + GAP), "\n".join(text), fill="black", font=font, spacing=2)
    picture.save(path)


def _chunk_lines(target: list[list[float]], mask: list[bool], names: list[str]) -> list[str]:
    """Write a chunk as one line per action dimension."""
    return [
        f"{name:<10}"
        + "  ".join(
            f"{round(float(step[i]), 2) + 0.0:+.2f}" if real else "(x)" for step, real in zip(target, mask, strict=True)
        )
        for i, name in enumerate(names)
    ]
