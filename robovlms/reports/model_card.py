"""The README.md of a checkpoint on the Hub: what it was made of, what it reached and how it is used."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped]
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from robovlms import __version__
from robovlms.backbones.checkpoints.licences import UNKNOWN, Licence
from robovlms.config.choices import Language
from robovlms.config.run import TrainConfig
from robovlms.evaluation.analysis.language import sentences
from robovlms.evaluation.results import HEADER, SECTIONS, Results, length_text, row_cells, table_rows
from robovlms.policy.spec import PolicySpec
from robovlms.reports.pages import TEMPLATES


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a card is written from."""

    repo: str  # <owner>/<name>
    config: TrainConfig
    spec: PolicySpec
    step: int | None  # of training; None: not known
    base_model: str | None  # id on the Hub; None: there is none, or it is not known
    licence: Licence
    datasets: Sequence[str]  # ids on the Hub
    evaluations: Sequence[Results]  # of this very checkpoint
    training_command: str | None  # None: no command makes this config
    removed: Sequence[str]  # options whose values were places of a machine

    def __str__(self) -> str:
        """Return it as Markdown."""
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters["plain"] = plain
        text: str = environment.get_template("model_card.md").render(
            card=self,
            metadata=yaml.safe_dump(self.metadata(), sort_keys=False, allow_unicode=True),
            is_unknown=self.licence == UNKNOWN,
            recipe=_recipe(self.config, self.step),
            evaluations=[_evaluation(results) for results in self.evaluations],
            sim=self.config.sim and self.config.sim.name,
            version=__version__,
        )
        return text

    def metadata(self) -> dict[str, Any]:
        """Return what the Hub reads of a card."""
        config, licence = self.config, self.licence
        sims = [results["config"]["sim"]["name"] for results in self.evaluations]
        parts = (config.backbone.name, config.structure.name.value, config.head.name, config.data.name, *sims)
        found: dict[str, Any] = {
            "library_name": "robovlms",
            "pipeline_tag": "robotics",
            "license": licence.identifier,
            "license_name": licence.name,
            "license_link": licence.link,
            "base_model": self.base_model,
            "datasets": list(self.datasets),
            "tags": list(dict.fromkeys(["robotics", "vision-language-action", "vla", *parts])),
            "model-index": self._index(),
        }
        return {key: value for key, value in found.items() if value}

    def _index(self) -> list[dict[str, Any]]:
        rows = [row for results in self.evaluations for row in _metrics(results)]
        return [{"name": self.repo.partition("/")[2], "results": rows}] if rows else []


def _metrics(results: Results) -> list[dict[str, Any]]:
    """Return a result of the Hub's `model-index` for each measure of an evaluation with the tasks' own instructions."""
    rates, sim = results["language"]["own"], results["config"]["sim"]["name"]
    row, chains = rates["overall"], rates["chains"]
    counted = f"{row['successes']} of {row['trials']} episodes"
    metrics = [
        {
            "type": "success_rate",
            "name": f"success rate ({counted}; 95 % interval {row['low']:.4f} to {row['high']:.4f})",
            "value": round(row["mean"], 4),
        }
    ]
    if chains:
        interval = f"95 % interval {chains['low']:.3f} to {chains['high']:.3f}"
        name = f"goals in a row of {len(chains['rates'])} ({interval})"
        metrics.append({"type": "average_length", "name": name, "value": round(chains["average_length"], 4)})
    task, dataset = {"type": "robotics", "name": "Robotics"}, {"type": sim, "name": sim}
    return [{"task": task, "dataset": dataset, "metrics": [metric]} for metric in metrics]


def _evaluation(results: Results) -> dict[str, Any]:
    """Return what the template shows of an evaluation."""
    evaluation = results["config"]["evaluation"]
    tables = []
    for language, rates in results["language"].items():
        title = SECTIONS[Language(language)]
        title += f", average length {length_text(rates['chains'])}" if rates["chains"] else ""
        tables.append((title, [row_cells(name, row) for name, row in table_rows(rates)]))
    return {
        "sim": results["config"]["sim"]["name"],
        "header": HEADER,
        "tables": tables,
        "sentences": sentences(results.get("instructions")),
        "execution": f"execution={evaluation['execution']}, execute_steps={evaluation['execute_steps']}",
        "seeds": ", ".join(str(seed) for seed in results["certificate"]["seeds"]),
        "machine": results["certificate"]["machine"],
        "versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        "chosen_from": results.get("chosen_from", 1),
    }


def _recipe(config: TrainConfig, step: int | None) -> dict[str, str]:
    """Return the rows of the recipe's table; the whole of it is config.yaml."""
    backbone, lora = config.backbone, config.backbone.lora
    frozen = [part for part in ("vision", "text", "embeddings") if getattr(backbone, f"freeze_{part}")]
    trained = f"LoRA of rank {lora.rank}" if lora.rank else f"all but {', '.join(frozen)}" if frozen else "all weights"
    rows = {
        "structure": config.structure.name.value,
        "head": config.head.name,
        "window": f"{config.window.window_size} frames, chunks of {config.window.chunk_size} actions",
        "views": ", ".join(config.view.views),
        "backbone": f"{backbone.name}, {backbone.size}, {trained}{', random weights' if backbone.random_init else ''}",
        "optimizer": f"{config.optimizer.name}, learning rate {config.optimizer.lr:g}",
        "batch": f"{config.batch_size} windows a step",
        "length": config.schedule.total + (f"; this is step {step}" if step is not None else ""),
        "precision": config.precision.name.value,
        "seed": str(config.seed),
    }
    if config.cotrain is not None:
        rows["co-training"] = f"{config.cotrain.batch_size} conversations a step, weight {config.cotrain.weight:g}"
    return rows


def plain(text: object) -> str:
    """Return foreign text as it stands in a line of Markdown: nothing in it is markup, a link or a new row."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]<>|#~!&])", r"\\\1", line)
