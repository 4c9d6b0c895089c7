"""Which graphs torch.compile makes of every family's policy: the table of docs/performance.md.

`python benchmarks/graphs.py [family ...]` prints a row for each: tiny models, head=mlp, two windows of two frames of
two cameras with different instructions, the `eager` backend, which traces graphs and builds no kernels. Exit status 1:
a compiled policy's loss or actions are not the plain one's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from robovlms.backbones.base import Backbone
from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.config.choices import CompileMode, ModelSize, Structure
from robovlms.config.policy import BackboneConfig
from robovlms.heads.base import HeadSizes
from robovlms.heads.schemas.mlp import MLPHeadConfig
from robovlms.images.processor import Processor
from robovlms.policy.graphs import compiling
from robovlms.policy.policy import VLAPolicy
from robovlms.registry import BACKBONES, HEADS
from robovlms.types import Batch

WINDOW, CHUNK, ACTIONS, PIXELS = 2, 3, 7, 40
VIEWS = ["side", "wrist"]
HEADER = "| family | training forward | acting forward | `layers`: what is compiled | graphs in training | in acting |"


def make_policy(family: str) -> VLAPolicy:
    """Return a tiny policy, the same at every call."""
    torch.manual_seed(0)
    backbone = make_backbone(family)
    sizes = HeadSizes(
        feature_dim=backbone.hidden_dim, action_dim=ACTIONS, binary=(ACTIONS - 1,), window_size=WINDOW, chunk_size=CHUNK
    )
    head = HEADS.get("mlp")(MLPHeadConfig(name="mlp", hidden_dim=16), sizes)
    return VLAPolicy(backbone, head, Structure.policy_head, Processor(backbone, VIEWS, max_text_tokens=64))


def make_backbone(family: str) -> Backbone:
    """Return a tiny backbone with the attention that its runs have."""
    made = BACKBONES.get(family)
    if not issubclass(made, HuggingFaceBackbone):
        return made.tiny()
    attention = made.attentions[0]
    return made.from_config(BackboneConfig(name=family, size=ModelSize.tiny, attn_implementation=attention))


def make_batch(policy: VLAPolicy) -> Batch:
    """Return two windows with different instructions."""
    generator = torch.Generator().manual_seed(0)
    ids, mask = policy.processor.text(["push it", "lift the red block"])
    shape = (2, WINDOW, PIXELS, PIXELS, 3)
    return Batch(
        frames={view: torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for view in VIEWS},
        text_ids=ids,
        text_mask=mask,
        actions=torch.rand(2, WINDOW, CHUNK, ACTIONS, generator=generator) * 2 - 1,
        action_mask=torch.ones(2, WINDOW, CHUNK, dtype=torch.bool),
    )


def train(policy: VLAPolicy, batch: Batch) -> Tensor:
    """Return the loss."""
    torch.manual_seed(0)  # some families have dropout
    return policy.train()(batch)["loss"]


def act(policy: VLAPolicy, batch: Batch) -> Tensor:
    """Return the chunks."""
    return policy.eval().predict(batch)


def graphs(family: str, run: Callable[[VLAPolicy, Batch], Tensor], mode: CompileMode) -> int:
    """Return how many graphs a policy that is compiled runs as.

    Raises:
        SystemExit: it does not compute what it computes without.
    """
    torch._dynamo.reset()
    counters.clear()
    policy = make_policy(family)
    batch = make_batch(policy)
    expected = run(policy, batch)  # also what a family does in its first forward alone, such as taking a lock
    compiling.compile_policy(policy, mode)
    if mode is CompileMode.model and run is act:
        policy.predict = torch.compile(policy.predict, backend=compiling.BACKEND)  # type: ignore[method-assign]
    found = run(policy, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=f"{family}: {run.__name__}, {mode}")
    return int(counters["stats"]["unique_graphs"])


def row(family: str) -> str:
    """Return a family's row."""
    whole = [graphs(family, run, CompileMode.model) for run in (train, act)]
    parts = [graphs(family, run, CompileMode.layers) for run in (train, act)]
    layers = [type(layer).__name__ for layer in compiling.repeated_layers(make_policy(family).backbone)]
    names = ", ".join(f"`{name}`" for name in dict.fromkeys(layers))
    said = ["one graph" if count == 1 else f"{count} graphs" for count in whole]
    return f"| {family} | {' | '.join(said)} | {names} | {' | '.join(map(str, parts))} |"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    compiling.BACKEND = "eager"
    print(HEADER + "\n" + "|---" * HEADER.count(" | ") + "|---|")
    for family in sys.argv[1:] or BACKBONES.names():
        print(row(family), flush=True)


if __name__ == "__main__":
    main()
