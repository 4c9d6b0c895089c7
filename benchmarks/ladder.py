"""The truth about a GPU in one call: training, control steps and serving, each named change a row, losses compared.

    python benchmarks/ladder.py --out results [--models kosmos paligemma qwen2_5_vl] [--seconds 460]
    python benchmarks/ladder.py --out results --device cpu --tiny     # every row that a CPU can run, tiny models

Models have their published sizes and random weights; data are made up; no file is read. A training row is the product's
own `Trainer` with a run's own options, its loop replaced by a stopwatch; a step is everything from the copy of the
batch to the optimizer. `results/ladder.json` is written after every row, so that a run that is stopped has what it
measured; the table is printed last. What does not fit, or fails, is a row as well; what there is no time for is a row
that says so. Exit status 1: losses differ by more than 1e-3 between a model's rows, or a row failed for another reason
than memory.

Needs torch >= 2.11, transformers >= 5.17, accelerate, einops, jaxtyping and omegaconf; not Hydra, not torchvision.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ladder_models as models
import numpy as np
import torch
import transformers
from ladder_measures import WARM, Stopwatch, control, planned_gb, seconds_of
from ladder_models import Acting, Rung, Sizes

from robovlms.config.choices import CompileMode, EngineDtype, FrameCache, Precision, Structure
from robovlms.policy.graphs import compiling

SPECIFIED = 989e12  # FLOP/s of a H100 or H200 in bf16, dense, as published
TOLERANCE = 1e-3  # of losses
GEMMS = ((64 * 148, 2048, 8192), (64 * 514, 1024, 4096), (16 * 526, 2048, 16384))  # of Kosmos' text, vision; PaliGemma
NEEDS_S = {
    "plan": 60.0,
    "train": 30.0,
    "train, compiled": 60.0,
    "control": 20.0,
    "control, compiled": 60.0,
    "serve": 12.0,
}

AUTOCAST = Rung(name="bf16_autocast", precision=Precision.bf16_autocast, all_tokens=True)
LAYERS = Rung(name="+ compile=layers", compile=CompileMode.layers, all_tokens=True)
ALL = Rung(name="+ last MLP at queries", compile=CompileMode.layers)
KOSMOS = (
    Rung(name="upstream-like", attention="eager", all_tokens=True, copies=True),
    AUTOCAST,
    Rung(name="bf16, fp32 masters", all_tokens=True),
    LAYERS,
    ALL,
)
OTHERS = (Rung(name="bf16, fp32 masters", all_tokens=True), LAYERS, ALL)
BF16 = Acting(name="bf16 eager")
ACTING = (
    Acting(name="fp32 eager", dtype=EngineDtype.fp32),
    BF16,
    Acting(name="bf16 compile=layers", compile=CompileMode.layers),
    Acting(name="bf16 compile=model: vision as CUDA graph", compile=CompileMode.model),
    Acting(name="bf16 cuda_graph=true", cuda_graph=True),
    Acting(name="bf16 compile=layers cuda_graph=true", compile=CompileMode.layers, cuda_graph=True),
    Acting(name="bf16 interleaved exact", structure=Structure.interleaved),
    Acting(name="bf16 interleaved exact cuda_graph=true", structure=Structure.interleaved, cuda_graph=True),
    Acting(name="bf16 interleaved staggered", structure=Structure.interleaved, cache=FrameCache.staggered),
)


class Ladder:
    """The rows, and what they have in common."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.sizes = Sizes(tiny=arguments.tiny, device=arguments.device)
        self.is_cuda, self.seconds = arguments.device == "cuda", arguments.seconds
        self.device, self.out, self.start = torch.device(arguments.device), Path(arguments.out), time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.matmul, self.has_failed = 0.0, False
        self.first: dict[str, tuple[str, dict[str, Any]]] = {}  # row of a model that ran, by its name
        self.planned: dict[tuple[str, Precision], float] = {}  # peaks in GB

    def row(self, labels: dict[str, Any], measure: Callable[[], dict[str, Any]], needs: str = "") -> None:
        """Measure a row and write all rows; what fails is written down in its place."""
        left = self.seconds - (time.monotonic() - self.start)
        needed = NEEDS_S.get(needs, 0.0) if self.is_cuda else 0.0
        if left < needed or left <= 0:
            found: dict[str, Any] = {"skipped": f"{max(0, left):.0f} s left of --seconds {self.seconds:.0f}"}
        else:
            began = time.monotonic()
            found = self.attempt(measure) | {"row_s": round(time.monotonic() - began, 1)}
        self.rows.append(labels | found)
        print(json.dumps(self.rows[-1]), flush=True)
        (self.out / "ladder.json").write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")

    def attempt(self, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what is measured, or why nothing could be."""
        gc.collect()
        torch.compiler.reset()
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            return measure()
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError) or isinstance(error.__cause__, torch.OutOfMemoryError):
                return {"error": f"out of memory: {str(error)[:300]}"}
            self.has_failed = True
            where = traceback.extract_tb(error.__traceback__)[-1]
            return {"error": f"{type(error).__name__}: {str(error)[:300]} ({Path(where.filename).name}:{where.lineno})"}

    def calibrate(self) -> dict[str, Any]:
        """Return what large matrix products and copies reach here: what shares are shares of."""

        def tflops(m: int, k: int, n: int) -> float:
            a = torch.randn(m, k, device=self.device, dtype=torch.bfloat16)
            b = torch.randn(k, n, device=self.device, dtype=torch.bfloat16)
            return 2 * m * k * n / self.repeated(lambda: a @ b) / 1e12

        side, shrunk = (8192, 1) if self.is_cuda else (256, 32)
        square = tflops(side, side, side)
        self.matmul = square * 1e12
        source = torch.empty(2**30 if self.is_cuda else 2**22, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        copied = 2 * source.numel() / self.repeated(lambda: target.copy_(source)) / 1e12
        shapes = [tuple(length // shrunk for length in shape) for shape in GEMMS]
        name = torch.cuda.get_device_name() if self.is_cuda else "cpu"
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        gemms = {"x".join(map(str, shape)): tflops(*shape) for shape in shapes}
        return {"device": name, **versions, f"matmul_{side}_tflops": square, "copy_tb_s": copied, "gemm_tflops": gemms}

    def repeated(self, function: Callable[[], Any], times: int = 10) -> float:
        """Return the seconds of one call."""
        for _ in range(WARM):
            function()
        return seconds_of(lambda: [function() for _ in range(times)], self.device)[1] / times

    def train(self, model: str, rung: Rung, windows: int) -> dict[str, Any]:
        """Return what a training step takes, and what it reaches of what the device can."""
        with tempfile.TemporaryDirectory() as folder:
            config = models.make_config(model, rung, windows, self.sizes, Path(folder))
            policy = models.make_policy(config.backbone, Structure.policy_head, self.sizes, self.sizes.window).train()
            if rung.all_tokens:
                policy.backbone.last_mlp = None
            instruction = models.instruction_of(policy, self.sizes.tokens(model))
            before = models.upstream_copies(policy, windows, self.sizes) if rung.copies else None
            with Stopwatch(config, before) as trainer:
                data = models.Windows(windows, self.sizes, instruction)
                trainer.fit(policy, data, None, {config.data.name: models.statistics()})
        found = trainer.measured | {"planned_gb": self.planned.get((model, rung.precision))}
        return self.shares(found, windows) | self.compare(model, rung.name, found)

    def plan(self, model: str, rung: Rung, windows: int) -> dict[str, Any]:
        """Return the peak that the planner counts for a model and a precision."""
        peak = planned_gb(models.make_config(model, rung, windows, self.sizes, Path("none")), windows)
        self.planned[model, rung.precision] = peak
        return {"planned_gb": peak}

    def shares(self, found: dict[str, Any], windows: int) -> dict[str, Any]:
        """Add what follows from seconds and FLOPs of a step."""
        speed = found["flops"] / found["seconds"]
        of_matmul = speed / self.matmul if self.matmul else None
        rates = {"windows_per_s": windows / found["seconds"], "tflops": speed / 1e12, "of_matmul": of_matmul}
        return found | rates | {"of_specified": speed / SPECIFIED if self.is_cuda else None}

    def compare(self, model: str, rung: str, found: dict[str, Any]) -> dict[str, Any]:
        """Say how far losses, and as a share norms of gradients, are from those of the model's first row that ran."""
        name, first = self.first.setdefault(model, (rung, found))
        apart = float(np.abs(np.subtract(found["losses"], first["losses"])).max())
        norms = float(np.abs(np.divide(found["grad_norms"], first["grad_norms"]) - 1).max())
        told = {"losses_apart": apart, "norms_apart": norms, "compared_with": name}
        if apart <= TOLERANCE:  # not so for NaN
            return told
        self.has_failed = True
        return told | {"error": f"LOSSES DIFFER by {apart:.2g} from those of {name!r}"}

    def serve(self, model: str, counts: tuple[int, ...]) -> None:
        """Measure frames a second of one engine that many sessions ask at once."""
        engines: list[Any] = []  # one for all rows; made inside the first, so that a failure is that row's

        def measure(count: int) -> dict[str, Any]:
            if not engines:
                engines.append(models.make_engine(model, BF16, self.sizes, max_batch_size=max(counts)))
            engine = engines[0]
            seen = models.observations(engine.policy, self.sizes.tokens(model))
            sessions = [engine.open() for _ in range(count)]

            def step(number: int) -> None:
                requests = [(session, seen[(number + i) % len(seen)]) for i, session in enumerate(sessions)]
                for answer in engine.step(requests):
                    if isinstance(answer, Exception):
                        raise answer

            for number in range(engine.window_size + 2):
                step(number)
            times = 20 if self.is_cuda else 2
            _, taken = seconds_of(lambda: [step(number) for number in range(times)], self.device)
            return {"frames_per_s": count * times / taken, "ms": 1000 * taken / times}

        for count in counts:
            labels = {"what": "serve", "model": model, "rung": BF16.name, "sessions": count}
            self.row(labels, partial(measure, count), "serve")

    def climb(self, chosen: list[str]) -> None:
        """Measure everything, what matters most first."""
        self.row({"what": "calibration"}, self.calibrate)
        is_large = self.is_cuda and torch.cuda.get_device_properties(0).total_memory > 100e9
        windows = {"kosmos": 4 if is_large else 2, "paligemma": 1, "qwen2_5_vl": 2 if is_large else 1}
        for model in chosen:
            count = 2 if self.sizes.tiny else windows.get(model, 1)
            rungs = KOSMOS if model == "kosmos" else OTHERS
            if find_spec("robovlms.planner"):
                for rung in {rung.precision: rung for rung in rungs}.values():
                    labels = {"what": "plan", "model": model, "precision": rung.precision, "windows": count}
                    self.row(labels, partial(self.plan, model, rung, count), "plan")
            for rung in rungs:
                labels = {"what": "train", "model": model, "rung": rung.name, "windows": count}
                is_compiled = rung.compile is not CompileMode.off
                needs = "train, compiled" if is_compiled else "train"
                self.row(labels, partial(self.train, model, rung, count), needs)
            if model == chosen[0]:
                self.act(model)

    def act(self, model: str) -> None:
        """Measure control steps and serving."""
        for acting in ACTING:
            labels = {"what": "control", "model": model, "rung": acting.name}
            if (acting.compile is CompileMode.model or acting.cuda_graph) and not self.is_cuda:
                self.row(labels, lambda: {"skipped": "CUDA graphs need a GPU"})
                continue
            needs = "control" if acting.compile is CompileMode.off else "control, compiled"
            self.row(labels, partial(control, model, acting, self.sizes), needs)
        self.serve(model, (1, 4, 16, 64) if self.is_cuda else (1, 4))


COLUMNS = {
    "train": [
        "model", "rung", "windows", "windows_per_s", "tflops", "of_matmul", "of_specified", "peak_gb", "planned_gb",
        "first_step_s", "sync_warnings", "losses_apart", "norms_apart",
    ],
    "control": ["model", "rung", "p50_ms", "p99_ms", "first_step_s"],
    "serve": ["model", "rung", "sessions", "frames_per_s", "ms"],
}  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown; what was skipped or failed says so at the end of its line."""
    lines = ["; ".join(f"{key} {shown(value)}" for key, value in row.items()) for row in rows[:1]]
    for what, columns in COLUMNS.items():
        lines += ["", "| " + " | ".join([*columns, "remark"]) + " |", "|" + "---|" * (len(columns) + 1)]
        for row in rows:
            if row["what"] == what:
                remark = row.get("error") or (f"skipped: {row['skipped']}" if "skipped" in row else "")
                cells = [*(shown(row.get(column)) for column in columns), remark.replace("|", "/").replace("\n", " ")]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """Return a value with three digits."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "-" if value is None else str(value)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=".")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="the families' tiny models; on a CPU, graphs are not built")
    parser.add_argument("--models", nargs="+", default=["kosmos", "paligemma", "qwen2_5_vl"])
    parser.add_argument("--seconds", type=float, default=460.0, help="after which no row is begun")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU: --device cpu --tiny runs what a CPU can.")
    if chosen.device == "cpu" and not chosen.tiny:
        parser.error("models of published size take hours on a CPU: add --tiny.")
    if chosen.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the trainer takes a GPU if it sees one
        compiling.BACKEND = "aot_eager"  # graphs are made; no C++ compiler is waited for
    Path(chosen.out).mkdir(parents=True, exist_ok=True)
    ladder = Ladder(chosen)
    ladder.climb(chosen.models)
    written = table(ladder.rows)
    (ladder.out / "ladder.md").write_text(written + "\n", encoding="utf-8")
    print(written)
    return int(ladder.has_failed)


if __name__ == "__main__":
    sys.exit(main())
