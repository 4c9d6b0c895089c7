"""What int8 weights change and cost, and what a control step costs as an ONNX program.

    python benchmarks/export.py [backbone ...]

Random policies with a window of 8, a chunk of 4, two views and head=lstm, on one CPU thread; seconds are those that the
process was at work. Sizes are of the backbone; changes are of normalised chunks for the synthetic observations that
`engine.max_action_change` is held against; `spread` is how far the arm's entries are from their means there. The steps
are of one session with a full window, the newest frame read.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from engine import VIEWS, WINDOW, make_engine

from robovlms.config.choices import ExportFormat, Structure
from robovlms.exporting.control_step import ControlStep
from robovlms.exporting.program import trace, write
from robovlms.policy.engine import PolicyEngine
from robovlms.policy.quantization.change import action_change
from robovlms.policy.quantization.int8 import Int8Linear, quantize_linears, weight_bytes
from robovlms.types import Observation

BACKBONES = ("nano", "kosmos", "paligemma", "qwen2_5_vl")
STEPS, WORDS, MB = 30, 8, 1e6


def milliseconds(step: Callable[[], object]) -> float:
    """Return what a call costs, once it is warm."""
    for _ in range(WINDOW + 1):
        step()
    start = time.process_time()
    for _ in range(STEPS):
        step()
    return (time.process_time() - start) / STEPS * 1000


def engine_step(engine: PolicyEngine) -> float:
    """Return what a decision of the engine costs (ms)."""
    size, session = engine.policy.processor.image_spec.size, engine.open()
    frames = {view: np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8) for view in VIEWS}
    return milliseconds(lambda: engine.predict([(session, Observation(frames=frames, instruction="open the drawer"))]))


def onnx_step(engine: PolicyEngine) -> float:
    """Return what a run of the exported program costs (ms)."""
    import onnxruntime

    size, source = engine.policy.processor.image_spec.size, engine._sources[0]
    step = ControlStep(engine.policy, source, engine._normalizers[source.name], WINDOW, (size, size)).eval()
    inputs = step.example(1, WORDS)
    names = ["actions", "next_features", "next_count"]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "step.onnx"
        description = {"inputs": dict.fromkeys(inputs, 0), "outputs": names}
        write(trace(step, 64), description, file, ExportFormat.onnx)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    given = {name: value.numpy() for name, value in inputs.items()}
    given["count"] = np.full_like(given["count"], WINDOW)
    return milliseconds(lambda: session.run(names, given))


def main() -> None:
    """Print a row of the table for every backbone."""
    torch.set_num_threads(1)
    columns = "MB fp32 | MB int8 | linear MB | spread | arm: largest | mean | gripper | ms fp32 | ms int8 | ms ONNX"
    print(f"| backbone | {columns} |")
    for name in sys.argv[1:] or BACKBONES:
        engine = make_engine(name, Structure.policy_head, "cpu")
        torch.nn.init.normal_(engine.policy.head.query, std=0.5)  # as it begins, it barely moves the actions
        backbone, before = engine.policy.backbone, engine.act_on_reference()
        size, plain, program = weight_bytes(backbone) / MB, engine_step(engine), onnx_step(engine)
        quantize_linears(backbone)
        change = action_change(before, engine.act_on_reference(), engine.policy.head.split)
        linear = sum(each.integers.numel() for each in backbone.modules() if isinstance(each, Int8Linear)) * 4 / MB
        cells = (
            f"{size:.2f}", f"{weight_bytes(backbone) / MB:.2f}", f"{linear:.2f}",
            f"{engine.policy.head.split.continuous(before).std(0).mean():.2g}",
            f"{change.arm_largest:.2g}", f"{change.arm_mean:.2g}", f"{change.grippers} of {before[..., 0].numel()}",
            f"{plain:.1f}", f"{engine_step(engine):.1f}", f"{program:.1f}",
        )  # fmt: skip
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
