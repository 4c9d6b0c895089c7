"""A checkpoint's control step as a program of its own."""

from __future__ import annotations

import logging
from pathlib import Path

from robovlms.actions.plan import find_source
from robovlms.config.choices import ExportFormat
from robovlms.config.commands import ExportConfig
from robovlms.exporting.control_step import ControlStep, check_exportable
from robovlms.exporting.program import check_onnx, describe, trace, write
from robovlms.policy.checkpoint import CONFIG, load_config, load_policy, resolve_checkpoint
from robovlms.policy.engine import check_weights
from robovlms.policy.manifest import checkpoint_digest
from robovlms.policy.quantization.int8 import quantize_linears

logger = logging.getLogger(__name__)


def export(config: ExportConfig) -> None:
    """Write the program `output`, complete or not at all.

    Raises:
        FileNotFoundError: no checkpoint there.
        FileExistsError: `output` exists, and `overwrite` does not say that it may be replaced.
        UserError: the policy cannot be exported, or an option does not fit it.
    """
    target = Path(config.output).expanduser()
    if target.exists() and not config.overwrite:
        raise FileExistsError(f"output={target} exists: choose another, delete it, or set overwrite=true.")
    folder = resolve_checkpoint(Path(config.checkpoint).expanduser())
    check_exportable(load_config(folder / CONFIG))
    if config.format is ExportFormat.onnx:
        check_onnx()
    trained = load_policy(folder, attn_implementation="sdpa")  # kernels of a GPU are no operators of a program
    policy = trained.policy.eval()
    check_weights(policy)
    policy.processor.check_instructions(config.instructions)
    if config.quantize is not None:
        quantize_linears(policy.backbone)
    source = find_source(trained.plan.sources, config.source)
    normalizer = trained.plan.normalizers(trained.statistics)[trained.plan.sources.index(source)]
    size = policy.processor.image_spec.size
    height, width = config.picture or (size, size)
    step = ControlStep(policy, source, normalizer, trained.config.window.window_size, (height, width)).eval()
    description = describe(step, trained, checkpoint_digest(folder), config.instructions)
    logger.info("tracing %s", folder)
    write(trace(step, trained.config.backbone.max_text_tokens), description, target, config.format)
    logger.info("%s gives %s; inputs: %s", target, ", ".join(description["action_names"]), description["inputs"])
