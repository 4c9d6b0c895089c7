"""Count the recipes for one GPU with every backbone that they are meant for, and write the table of docs/clusters.md.

    python benchmarks/one_gpu_table.py

Counted by `robovlms.planner` on the meta device; nothing is downloaded and no GPU is needed.
"""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tables import replace_table

from robovlms.cli.app import store_schemas
from robovlms.cli.jobs import to_dataclass
from robovlms.config.presets import config_folder
from robovlms.config.run import TrainConfig
from robovlms.planner.machines import GPUS
from robovlms.planner.plan import Plan, make_plan

PAGE = Path(__file__).parents[1] / "docs" / "clusters.md"
BACKBONES = ("smolvlm", "kosmos", "paligemma", "qwen2_5_vl")
RECIPES = ("finetune_24gb", "finetune_40gb", "finetune_80gb")


def counted(recipe: str, backbone: str, *overrides: str) -> Plan:
    """Return the plan of a recipe on the card that it names; what is asked of the user's data changes no byte."""
    store_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        config = compose("plan", [f"experiment={recipe}", f"backbone={backbone}", *overrides])
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, "tcp" if key.endswith(".frame") else "1")
    typed: TrainConfig = to_dataclass(config, TrainConfig)
    assert typed.cluster.gpu is not None
    return make_plan(typed, GPUS[typed.cluster.gpu])


def line(recipe: str, backbone: str, plan: Plan) -> str:
    """Return the line of a recipe and a backbone."""
    memory, trained = plan.memory, plan.trace.trained / 1e6
    parts = [memory.weights, memory.gradients + memory.masters + memory.moments, memory.activations]
    cells = [
        f"{trained:,.0f} M",
        *(f"{part:.1f}" for part in parts),
        f"**{memory.peak:.1f}**",
        f"{plan.step_seconds:.0f}",
    ]
    return f"| `{recipe}` | {backbone} | {' | '.join(cells)} |"


def main() -> None:
    """Count all and replace the table."""
    heads = ["`experiment=`", "`backbone=`", "trained", "weights, GB", "gradients and optimizer, GB", "activations, GB"]
    heads += ["peak, GB", "s a step, modelled"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for recipe in RECIPES:
        for backbone in BACKBONES:
            lines.append(line(recipe, backbone, counted(recipe, backbone)))
            print(lines[-1], flush=True)
    replace_table(PAGE, "benchmarks/one_gpu_table.py", lines)


if __name__ == "__main__":
    main()
