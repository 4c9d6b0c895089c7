"""Count the memory of common policies and write the table into docs/clusters.md.

    python benchmarks/memory_table.py

Counted by `robovlms.planner` on the meta device; nothing is downloaded and no GPU is needed.
"""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from tables import replace_table

from robovlms.cli.app import store_schemas
from robovlms.cli.jobs import to_dataclass
from robovlms.config.presets import config_folder
from robovlms.config.run import TrainConfig
from robovlms.planner.machines import GPUS
from robovlms.planner.plan import Plan, make_plan

PAGE = Path(__file__).parents[1] / "docs" / "clusters.md"
BACKBONES = ("smolvlm", "kosmos", "paligemma", "qwen2_5_vl", "llava")
LAYOUTS = {
    "16 frames, 2 views": ("window=w16_c10", "view=side_wrist"),
    "8 frames, 1 view": ("window=w8_c10", "view=side"),
}


def counted(backbone: str, layout: str, checkpointing: str) -> Plan:
    """Return the plan of one window a micro-step on one GPU."""
    overrides = (f"backbone={backbone}", f"backbone.checkpointing={checkpointing}", *LAYOUTS[layout])
    store_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        config = compose("plan", ["device_batch_size=1", *overrides])
    typed: TrainConfig = to_dataclass(config, TrainConfig)
    return make_plan(typed, GPUS["a100_80gb"])


def row(backbone: str) -> str:
    """Return a backbone's line of the table."""
    cells: list[str] = []
    states = 0.0
    for layout in LAYOUTS:
        for checkpointing in ("none", "full"):
            memory = counted(backbone, layout, checkpointing).memory
            states = memory.states
            cells.append(f"{memory.activations:.1f}")
    return f"| {backbone} | {states:.0f} | {' | '.join(cells)} |"


def main() -> None:
    """Count all and replace the table."""
    heads = [f"GB a window: {layout}{how}" for layout in LAYOUTS for how in ("", ", `full`")]
    lines = ["| backbone | states, GB | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]
    for backbone in BACKBONES:
        lines.append(row(backbone))
        print(lines[-1], flush=True)
    replace_table(PAGE, "benchmarks/memory_table.py", lines)


if __name__ == "__main__":
    main()
