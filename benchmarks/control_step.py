"""What a control step costs with and without memory, on the same frames, with equal actions.

    python benchmarks/control_step.py [--device cuda] [--steps 12]

Window of 16, two views. `full` encodes and reads the whole window every step, the others act from a memory.
Models: nano as in configs/backbone/nano.yaml, and Kosmos-2's architecture at a fraction of its size (224 px, 64 tokens
a view). Median of the steps after the window is full (of the last frames before it is, for the row that says so).
Fails where actions differ, or where memory helps less than the project promises.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np
import torch
from transformers import CLIPImageProcessorPil, Kosmos2Config, Kosmos2Model

from robovlms.backbones.base import Backbone
from robovlms.backbones.families._kosmos_shared import tiny_tokenizer
from robovlms.backbones.families.kosmos import Kosmos
from robovlms.backbones.families.nano import Nano
from robovlms.backbones.schemas.nano import NanoBackboneConfig
from robovlms.config.choices import FrameCache, Structure
from robovlms.config.policy import HeadConfig
from robovlms.heads.base import HeadSizes
from robovlms.heads.schemas.lstm import LSTMHeadConfig
from robovlms.heads.schemas.mlp import MLPHeadConfig
from robovlms.heads.schemas.tokens import TokensHeadConfig
from robovlms.images.processor import Processor
from robovlms.policy.acting import BatchedPolicy
from robovlms.policy.memory import start_memory
from robovlms.policy.policy import VLAPolicy
from robovlms.registry import HEADS
from robovlms.types import Batch

WINDOW, CHUNK, ACTION, VIEWS, INSTRUCTION = 16, 4, 7, ["side", "wrist"], "push the red block to the left"
PROMISED = {
    "policy_head, newest frame": 10,
    "interleaved, growing": 6,
    "interleaved, staggered": 6,
    "tokens, context": 3,
}


def make_kosmos() -> Kosmos:
    """Build Kosmos-2 with 6 + 6 layers of widths 256 and 512."""
    tokenizer = tiny_tokenizer()
    text = {"embed_dim": 512, "layers": 6, "ffn_dim": 2048, "attention_heads": 8, "vocab_size": len(tokenizer)}
    vision = {
        "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4,
        "image_size": 224, "patch_size": 14,
    }  # fmt: skip
    config = Kosmos2Config(text_config=text, vision_config=vision, latent_query_num=64)
    return Kosmos(Kosmos2Model(config), tokenizer, CLIPImageProcessorPil())


def make_nano() -> Nano:
    """Build the size of configs/backbone/nano.yaml."""
    return Nano(NanoBackboneConfig(name="nano", image_size=64, hidden_dim=128, num_layers=2, num_heads=4))


def make_policy(backbone: Backbone, structure: Structure, config: HeadConfig) -> VLAPolicy:
    """Put a head and a structure to it."""
    sizes = HeadSizes(
        feature_dim=backbone.hidden_dim, action_dim=ACTION,
        binary=(ACTION - 1,), window_size=WINDOW, chunk_size=CHUNK,
        embedding_rms=backbone.embedding_rms(),
    )  # fmt: skip
    head = HEADS.get(config.name)(config, sizes)
    return VLAPolicy(backbone, head, structure, Processor(backbone, VIEWS, max_text_tokens=64)).eval()


class Episode:
    """Frames of noise, as one batch of any stretch of them."""

    def __init__(self, policy: VLAPolicy, length: int, device: str) -> None:
        size = policy.processor.image_spec.size
        frames = np.random.default_rng(0).integers(0, 256, (length, size, size, 3), dtype=np.uint8)
        self.frames = torch.from_numpy(frames).to(device)
        self.text = [tensor.to(device) for tensor in policy.processor.text([INSTRUCTION])]

    def batch(self, start: int, stop: int) -> Batch:
        """Return frames start..stop."""
        frames = dict.fromkeys(VIEWS, self.frames[None, start:stop])
        return Batch(frames=frames, text_ids=self.text[0], text_mask=self.text[1])


def timed(function, device: str) -> tuple[float, torch.Tensor]:  # type: ignore[no-untyped-def]
    """Return seconds and the result."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def stream(policy: VLAPolicy, episode: Episode, steps: range, cache: FrameCache, device: str) -> list:  # type: ignore[type-arg]
    """Return seconds and chunk of every step of `steps`, from a memory that has seen all before."""
    window = 1 if policy.structure is Structure.one_step else WINDOW
    memory, batched = start_memory(policy, window, cache), BatchedPolicy(policy, max_batch_size=WINDOW)
    measured = []
    for i in range(steps.stop):
        step = episode.batch(i, i + 1)

        def control_step(step: Batch = step) -> torch.Tensor:
            memory.observe(step)
            return batched.act([memory])[0][None]

        found = timed(control_step, device)
        if i in steps:
            measured.append(found)
    return measured


def compare(name: str, policy: VLAPolicy, steps: int, device: str) -> list[tuple[str, float, float]]:
    """Measure one policy with and without memory: rows of name, seconds without, seconds with."""
    policy = policy.to(device)
    late, early = range(WINDOW, WINDOW + steps), range(WINDOW - 4, WINDOW)
    episode = Episode(policy, late.stop, device)
    is_one = policy.structure is Structure.one_step

    def whole(i: int) -> torch.Tensor:
        return policy.predict(episode.batch(i if is_one else max(0, i - WINDOW + 1), i + 1))

    if is_one:
        with_context = stream(policy, episode, late, FrameCache.exact, device)
        policy.backbone.new_cache = lambda: None  # type: ignore[method-assign]
        rows = [("tokens, context", [timed(lambda i=i: whole(i), device) for i in late], with_context)]
    else:
        full = [timed(lambda i=i: whole(i), device) for i in late]
        exact = stream(policy, episode, late, FrameCache.exact, device)
        rows = [("policy_head, newest frame", full, exact)]
    if policy.structure is Structure.interleaved:
        grown = stream(policy, episode, early, FrameCache.exact, device)
        staggered = stream(policy, episode, late, FrameCache.staggered, device)
        rows = [
            ("interleaved, growing", [timed(lambda i=i: whole(i), device) for i in early], grown),
            ("interleaved, exact", full, exact),
            ("interleaved, staggered", full, staggered),
        ]
    result = []
    for row, without, with_memory in rows:
        if row != "interleaved, staggered":  # an approximation
            for (_, expected), (_, found) in zip(without, with_memory, strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if device == "cpu" else 1e-2)
        result.append((f"{name}: {row}", median(s for s, _ in without), median(s for s, _ in with_memory)))
    return result


def main() -> None:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"{'':44}{'without':>12}{'with':>12}{'times':>8}")
    missed = []
    for name, make, width, depth in (("nano", make_nano, 256, 1), ("kosmos, small", make_kosmos, 1024, 4)):
        heads: dict[Structure, HeadConfig] = {
            Structure.policy_head: LSTMHeadConfig(name="lstm", hidden_dim=width, num_layers=depth),
            Structure.interleaved: MLPHeadConfig(name="mlp", hidden_dim=width),
            Structure.one_step: TokensHeadConfig(name="tokens", num_bins=64),
        }
        for structure, config in heads.items():
            for row, without, with_memory in compare(
                name, make_policy(make(), structure, config), arguments.steps, arguments.device
            ):
                times = without / with_memory
                print(f"{row:44}{1000 * without:9.1f} ms{1000 * with_memory:9.1f} ms{times:8.1f}", flush=True)
                promised = PROMISED.get(row.split(": ")[1], 0)
                if times < promised:
                    missed.append(f"{row}: {times:.1f} < {promised}")
    if missed and arguments.device == "cpu":
        raise SystemExit("\n".join(missed))


if __name__ == "__main__":
    main()
