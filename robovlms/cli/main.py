"""The commands: each composes and checks its config, then imports what is heavy and runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from robovlms.cli.app import entry
from robovlms.config.closed_loop import OpenLoopConfig
from robovlms.config.commands import (
    CollectDemosConfig,
    CompareConfig,
    ConvertBackboneConfig,
    ConvertCheckpointConfig,
    ConvertDataConfig,
    EvaluateConfig,
    ExportConfig,
    InspectConfig,
    MergeLoRAConfig,
    PushToHubConfig,
    ServeConfig,
)
from robovlms.config.run import TrainConfig
from robovlms.data.editing.schema import EditDataConfig
from robovlms.errors import UserError
from robovlms.terminal import show

MPI = {"PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "I_MPI_INFO_NP"}


def train() -> None:
    """Run `python train.py` or `robovlms-train`."""
    entry("train", TrainConfig, _train)


def evaluate() -> None:
    """Run `python scripts/evaluate.py` or `robovlms-evaluate`."""
    entry("evaluate", EvaluateConfig, _evaluate)


def open_loop() -> None:
    """Run `python scripts/open_loop.py` or `robovlms-open-loop`."""
    entry("open_loop", OpenLoopConfig, _open_loop)


def serve() -> None:
    """Run `python scripts/serve.py` or `robovlms-serve`."""
    entry("serve", ServeConfig, _serve)


def export() -> None:
    """Run `python scripts/export.py` or `robovlms-export`."""
    entry("export", ExportConfig, _export)


def collect_demos() -> None:
    """Run `python scripts/collect_demos.py` or `robovlms-collect-demos`."""
    entry("collect_demos", CollectDemosConfig, _collect_demos)


def inspect_data() -> None:
    """Run `python scripts/inspect_data.py` or `robovlms-inspect-data`."""
    entry("inspect_data", InspectConfig, _inspect_data)


def convert_data() -> None:
    """Run `python scripts/convert_data.py` or `robovlms-convert-data`."""
    entry("convert_data", ConvertDataConfig, _convert_data)


def edit_data() -> None:
    """Run `python scripts/edit_data.py` or `robovlms-edit-data`."""
    entry("edit_data", EditDataConfig, _edit_data)


def convert_backbone() -> None:
    """Run `python scripts/convert_backbone.py` or `robovlms-convert-backbone`."""
    entry("convert_backbone", ConvertBackboneConfig, _convert_backbone)


def convert_checkpoint() -> None:
    """Run `python scripts/convert_checkpoint.py` or `robovlms-convert-checkpoint`."""
    entry("convert_checkpoint", ConvertCheckpointConfig, _convert_checkpoint)


def compare() -> None:
    """Run `python scripts/compare.py` or `robovlms-compare`."""
    entry("compare", CompareConfig, _compare)


def plan() -> None:
    """Run `python scripts/plan.py` or `robovlms-plan`."""
    entry("plan", TrainConfig, _plan)


def merge_lora() -> None:
    """Run `python scripts/merge_lora.py` or `robovlms-merge-lora`."""
    entry("merge_lora", MergeLoRAConfig, _merge_lora)


def push_to_hub() -> None:
    """Run `python scripts/push_to_hub.py` or `robovlms-push-to-hub`."""
    entry("push_to_hub", PushToHubConfig, _push_to_hub)


def _train(config: TrainConfig) -> None:
    if not MPI & set(os.environ):  # those processes are counted by accelerate
        config.cluster.check_launch(int(os.environ.get("WORLD_SIZE", "1")))
    from robovlms.commands.train import train as run

    run(config)


def _evaluate(config: EvaluateConfig) -> None:
    if config.verify is not None:
        from robovlms.commands.verify import verify

        verdict = verify(
            Path(config.verify),
            config.share,
            config.checkpoint,
            server=config.server,
            server_token=config.server_token,
            server_patience_s=config.server_patience_s,
        )
        show(str(verdict))
        sys.exit(0 if verdict.holds else 1)
    from robovlms.commands.evaluate import evaluate_in_launch as run

    run(config)


def _open_loop(config: OpenLoopConfig) -> None:
    from robovlms.commands.open_loop import open_loop as run

    for page in run(config):
        show(str(page))


def _serve(config: ServeConfig) -> None:
    from robovlms.commands.serve import serve as run

    run(config)


def _export(config: ExportConfig) -> None:
    from robovlms.commands.export import export as run

    run(config)


def _collect_demos(config: CollectDemosConfig) -> None:
    from robovlms.commands.collect_demos import collect_demos as run

    run(config.collect, config.sim, Path(config.root))


def _inspect_data(config: InspectConfig) -> None:
    from robovlms.commands.inspect_data import inspect_data as run
    from robovlms.inspection.text import format_report

    num_errors = 0
    for report, index in run(config):
        show(f"{format_report(report)}\n\n{index}\n")
        num_errors += report.num_errors
    sys.stdout.flush()
    if num_errors:  # the pages are written all the same
        raise UserError(f"{num_errors} of the findings above are errors: correct what they name before you train.")


def _convert_data(config: ConvertDataConfig) -> None:
    from robovlms.commands.convert_data import convert_data as run

    for summary in run(config):
        show(summary)


def _edit_data(config: EditDataConfig) -> None:
    from robovlms.commands.edit_data import edit_data as run

    for line in run(config):
        show(line)


def _convert_backbone(config: ConvertBackboneConfig) -> None:
    from robovlms.commands.convert_backbone import convert_folder as run

    run(config.family, config.source, config.output_dir, config.vlm)


def _convert_checkpoint(config: ConvertCheckpointConfig) -> None:
    from robovlms.commands.convert_checkpoint import convert_checkpoint as run

    run(config)


def _compare(config: CompareConfig) -> None:
    from robovlms.commands.compare import compare as run

    text, page = run(config.folders, config.latency_steps, sequential=config.sequential, output_dir=config.output_dir)
    show(f"{text}\n\n{page}")


def _plan(config: TrainConfig) -> None:
    from robovlms.commands.plan import plan as run

    text, fits = run(config)
    show(text)
    sys.stdout.flush()
    sys.exit(0 if fits else 3)


def _merge_lora(config: MergeLoRAConfig) -> None:
    from robovlms.commands.merge_lora import merge_checkpoint as run
    from robovlms.policy.checkpoint import resolve_checkpoint

    run(resolve_checkpoint(Path(config.checkpoint)), Path(config.output_dir))


def _push_to_hub(config: PushToHubConfig) -> None:
    from robovlms.cli.recipe import command_of
    from robovlms.commands.push_to_hub import push_to_hub as run

    show(run(config, command_of))
