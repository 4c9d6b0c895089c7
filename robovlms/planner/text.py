"""A plan as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from robovlms.planner.changes import Fitting
from robovlms.planner.plan import Plan


def describe(plan: Plan, sizes: Sequence[tuple[str, Fitting | None]]) -> str:
    """Return what a run needs, line by line, and what fits into which GPU.

    Args:
        plan: of the run as it is.
        sizes: GPUs' names, each with what fits into it.
    """
    return "\n".join([*_verdict(plan), "", *_memory(plan), "", *_work(plan), "", *_sizes(sizes), "", *ASSUMED])


ASSUMED = [
    "Counted: parameters, operations, bytes. Modelled: time (a roofline of eager kernels, nothing fused).",
    "Assumed: what GPUs reach of their data sheets, 200 GB/s between GPUs of a machine and 25 GB/s between",
    "machines, 1 GB beside the model, 3 % of the activations lost to fragmentation.",
]


def verdict(plan: Plan) -> str:
    """Return whether the run fits, in one line."""
    does = "fits" if plan.fits else "does not fit"
    return (
        f"peak {plan.memory.peak:.1f} GB a GPU: {does} into {plan.gpu.name} ({plan.gpu.memory_gb:g} GB, of which "
        f"{plan.limit_gb:.1f} are planned with)"
    )


def _verdict(plan: Plan) -> list[str]:
    config, trace = plan.config, plan.trace
    layout = (
        f"batch of {config.batch_size} windows = {plan.processes} GPUs x {config.device_batch_size} x "
        f"{plan.accumulation} accumulated; precision={config.precision.name}, parallel={config.parallel.name}, "
        f"checkpointing={config.backbone.checkpointing}"
    )
    model = f"{trace.parameters / 1e9:.3f} B parameters, {trace.trained / 1e9:.3f} B of them trained"
    return [verdict(plan), layout, f"{config.backbone.name}, {config.structure.name}, {config.head.name}: {model}"]


def _memory(plan: Plan) -> list[str]:
    memory = plan.memory
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "float32 masters": memory.masters,
        "moments": memory.moments,
        "moving average": memory.average,
        "gathered layers": memory.gathered,
        "activations": memory.activations,
        "beside the model": memory.reserve,
    }
    return ["memory, GB a GPU"] + [f"  {name:18} {value:7.2f}" for name, value in parts.items() if value]


def _work(plan: Plan) -> list[str]:
    trace, config = plan.trace, plan.config
    frames = trace.windows * config.window.window_size
    seconds = {kind: 1e3 * value for kind, value in trace.seconds(plan.gpu).items()}
    parts = ", ".join(f"{kind} {value:.0f}" for kind, value in seconds.items())
    lines = [
        f"work: {trace.forward_flops / frames / 1e9:,.1f} GFLOP a frame forward, "
        f"{plan.flops_a_window / 1e12:.2f} TFLOP a window, "
        f"{plan.flops_a_window * config.batch_size / 1e15:.3f} PFLOP a step; "
        f"{trace.tokens / frames:.0f} tokens a frame",
        f"step: {plan.step_seconds:.3f} s = {plan.accumulation} x {plan.micro_seconds:.3f} s ({parts} ms, "
        f"{len(trace.kernels)} kernels) + optimizer {plan.optimizer_seconds:.3f} s + exchange "
        f"({plan.exchanged_bytes / 1e9:.2f} GB, {plan.exchange_seconds:.3f} s, mostly hidden)",
        f"speed: {plan.windows_a_second:.1f} windows/s, {plan.mfu:.1%} of {plan.gpu.matmul_tflops:.0f} TFLOP/s a GPU",
        f"data: {plan.windows_a_second / plan.processes:.2f} windows/s for each GPU",
        f"checkpoint: {plan.checkpoint_gb:.1f} GB",
    ]
    if plan.hours is None:
        lines.append("run: schedule.total is in epochs; say planner.windows=<windows of the data set> for its hours")
    else:
        cost = plan.hours * plan.processes
        lines.append(f"run: {plan.steps:,} steps, {plan.hours:.1f} h, {cost:,.0f} GPU hours")
        if config.planner.price is not None:
            lines.append(f"cost: {cost * config.planner.price:,.0f} at {config.planner.price:g} a GPU hour")
    return lines


def _sizes(sizes: Sequence[tuple[str, Fitting | None]]) -> list[str]:
    lines = ["what fits, and the changes that it takes"]
    for name, fitting in sizes:
        if fitting is None:
            lines.append(f"  {name:10} nothing, not even adapters (LoRA) beside frozen weights in 4 bits")
            continue
        changes = " ".join(fitting.overrides) or "as it is"
        changes += " (trains less)" if fitting.trains_less else ""
        plan = fitting.plan
        lines.append(f"  {name:10} {plan.memory.peak:6.1f} GB, {plan.step_seconds:7.3f} s a step: {changes}")
    return lines
