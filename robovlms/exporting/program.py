"""A control step as an ONNX file, or as a program of torch.export, with all that a runner must know inside it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from robovlms.config.choices import ExportFormat
from robovlms.errors import UserError
from robovlms.exporting.control_step import ControlStep
from robovlms.exporting.names import METADATA, NEXT, VERSION
from robovlms.files import atomic_file
from robovlms.policy.checkpoint import Trained

MIN_TOKENS = 3  # of a text input: shorter ones are padded
MAX_BATCH = 4096
OPSET = 20


def trace(step: ControlStep, max_text_tokens: int) -> torch.export.ExportedProgram:
    """Return the step for any number of rows and any length of text, at least MIN_TOKENS."""
    inputs = step.example(2, MIN_TOKENS + 2)
    rows = torch.export.Dim("rows", min=1, max=MAX_BATCH)
    words = torch.export.Dim.AUTO(min=MIN_TOKENS, max=max(max_text_tokens, MIN_TOKENS + 2))
    shapes = {name: {0: rows, 1: words} if name.startswith("text_") else {0: rows} for name in inputs}
    with torch.no_grad():
        step(inputs)  # what is computed once and kept, e.g. weights of resizing, is of numbers, not of a trace
        return torch.export.export(
            step, (inputs,), dynamic_shapes=(shapes,), prefer_deferred_runtime_asserts_over_guards=True
        )


def describe(step: ControlStep, trained: Trained, digest: str, instructions: Sequence[str]) -> dict[str, Any]:
    """Return what a runner must know, as JSON values.

    Args:
        step: what is exported.
        trained: of its checkpoint.
        digest: SHA-256 of what the checkpoint is made of.
        instructions: whose token ids are written down, so that they are played without a tokenizer.
    """
    inputs = step.example(1, MIN_TOKENS)
    chosen = trained.spec.find(step.source.name if len(trained.spec.sources) > 1 else None)
    texts = dict[str, list[int]]()
    for instruction in instructions:
        ids, mask = trained.policy.processor.text([instruction])
        texts[instruction.strip()] = ids[mask].tolist()
    memory = ["features", "count"] if step.remembers else []
    return {
        "version": VERSION,
        "spec": trained.spec.to_json(),
        "source": step.source.name,
        "action_names": chosen.contract.names,
        "proprio_names": chosen.proprio_names,
        "checkpoint": digest,
        "window_size": step.window_size,
        "inputs": {
            name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in inputs.items()
        },
        "memory": memory,
        "outputs": ["actions", *(NEXT + name for name in memory)],
        "min_text_tokens": MIN_TOKENS,
        "max_text_tokens": trained.config.backbone.max_text_tokens,
        "instructions": texts,
        "noise": inputs["noise"][0].tolist() if "noise" in inputs else None,
    }


def write(program: torch.export.ExportedProgram, description: dict[str, Any], target: Path, form: ExportFormat) -> None:
    """Write a program, complete or not at all: one file, with its weights beside it where ONNX cannot hold them.

    Raises:
        UserError: the packages that write ONNX are not installed.
    """
    if form is ExportFormat.onnx:
        check_onnx()
    text = json.dumps(description)
    if form is ExportFormat.torch:
        with atomic_file(target) as file:
            torch.export.save(program, file, extra_files={METADATA: text})
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        logging.getLogger("onnxscript").setLevel(logging.WARNING)
        converted = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            verbose=False,
            input_names=list(description["inputs"]),
            output_names=description["outputs"],
        )
        assert converted is not None
        _optimize(converted)
        converted.model.metadata_props[METADATA] = text
        converted.save(Path(folder) / target.name)
        for part in sorted(Path(folder).iterdir(), reverse=True):  # weights of more than 2 GB lie in <name>.data
            part.replace(target.parent / part.name)


def _optimize(converted: torch.onnx.ONNXProgram) -> None:
    """Simplify a graph; matrices of int8 stay so: by itself the optimizer writes the floats that they mean."""
    from onnxscript.ir import DataType, Node
    from onnxscript.optimizer import optimize_ir

    def should_fold(node: Node) -> bool | None:
        of_int8 = node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype == DataType.INT8
        return False if of_int8 else None

    optimize_ir(converted.model, should_fold=should_fold)


def check_onnx() -> None:
    """Refuse to begin without the packages that write ONNX.

    Raises:
        UserError: names the extra.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise UserError(f"format=onnx needs {' and '.join(missing)}: pip install .[export], or use format=torch.")
