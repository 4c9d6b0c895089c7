"""Count every backbone at its published size and write the table into docs/backbones.md.

    python benchmarks/backbones.py

Nothing is downloaded. Parameters are counted on the meta device, the vocabulary head included where it is not tied. An
operation is one multiplication or addition of the forward; a frame is one view, 8 tokens of text and a query, as
`policy_head` reads it, without the vocabulary head.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tables import replace_table
from torch.utils.flop_counter import FlopCounterMode
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModel, AutoModelForImageTextToText

from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.registry import BACKBONES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "backbones.md"
SEES_NUMBERS = {  # modules that look at numbers on the way, which the meta device has not
    "gemma4": ["vision_tower", "embed_vision"],
    "idefics3": ["vision_model", "connector"],
    "smolvlm": ["vision_model", "connector"],
}
NUM_TEXT = 8


class Row(NamedTuple):
    """A line of the table."""

    name: str
    checkpoint: str
    licence: str
    billions: float  # parameters
    hidden: int
    image_size: int  # px
    tokens: int  # of a view
    marks: int  # around them
    gflop: float  # of a frame

    def __str__(self) -> str:
        marks = f" + {self.marks}" if self.marks else ""
        size = f"{self.billions:.3f} B" if self.billions > 0.1 else f"{self.billions * 1000:.1f} M"
        return (
            f"| `{self.name}` | {self.checkpoint} | {self.licence} | {size} | {self.hidden} | {self.image_size} px | "
            f"{self.tokens}{marks} | {self.gflop:,.0f} |"
        )


def read_yaml(name: str) -> tuple[str, str, int]:
    """Return the hub id, licence and image size (px) that configs/backbone/<name>.yaml states.

    Raises:
        ValueError: its first line does not state them.
    """
    text = (ROOT / "configs" / "backbone" / f"{name}.yaml").read_text(encoding="utf-8")
    first = text.splitlines()[0].rstrip(".")
    size = re.search(r" tokens per (\d+) px view", first)
    licence = next((part for part in first.split(". ")[1:] if "licence" in part.lower()), None)
    checkpoint = re.search(r"^# Convert (\S+) first", text, re.MULTILINE)
    checkpoint = checkpoint or re.search(r"^checkpoint: (\S+)", text, re.MULTILINE)
    if size is None or licence is None or checkpoint is None:
        raise ValueError(f"{name}.yaml must begin '# Name, 1.0 B parameters, 64 tokens per 224 px view. MIT licence.'")
    return checkpoint[1], licence.removesuffix(" licence").removeprefix("Licence: "), int(size[1])


def count_parameters(name: str) -> int:
    """Count the whole published model; to a model of ours, which has no vocabulary head, that head is added."""
    config = BACKBONES.get(name).published_config()
    is_native = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    with torch.device("meta"):
        model: Any = (AutoModelForImageTextToText if is_native else AutoModel).from_config(config)
    head = 0 if is_native or config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    return head + sum(p.numel() for p in model.parameters())


def measure(name: str) -> Row:
    """Count one family at its published size: on the meta device, or in memory if more of it looks at numbers."""
    try:
        return measure_on(name, "meta")
    except RuntimeError:
        return measure_on(name, "cpu")


@torch.no_grad()
def measure_on(name: str, device: str) -> Row:
    """Count one family on a device, with the tokenizer of the tiny model and weights that are no numbers."""
    checkpoint, licence, size = read_yaml(name)
    cls = BACKBONES.get(name)
    backbone: HuggingFaceBackbone = cls.tiny().eval()
    attention = {"": "eager", "text_config": "eager", "vision_config": "sdpa"}  # sdpa's masks look at numbers
    with torch.device("meta"):
        model: Any = AutoModel.from_config(cls.published_config(), attn_implementation=attention).eval()
    backbone.model = model.bfloat16().to_empty(device=device)
    backbone.hidden_dim = backbone.embedding.weight.shape[1]
    backbone.image_spec = replace(backbone.image_spec, size=size)
    backbone.max_length = backbone.count_positions()
    backbone.to(device).requires_grad_(False)

    ids = torch.zeros(1, NUM_TEXT, dtype=torch.long, device=device)
    images = torch.zeros(1, 1, 1, 3, size, size, device=device)
    query = torch.zeros(1, 1, 1, backbone.hidden_dim, device=device)
    with FlopCounterMode(display=False) as counter:
        if name in SEES_NUMBERS:
            for part in SEES_NUMBERS[name]:
                model.get_submodule(part).to_empty(device="cpu")
            put = backbone.put_marks
            backbone.put_marks = lambda tokens: put(tokens.to("meta"))  # type: ignore[method-assign]
            marked = backbone.embed_images(torch.zeros(1, 3, size, size).bfloat16())
            backbone.embed_images = lambda images: marked  # type: ignore[method-assign]
        backbone(images, ids, torch.ones_like(ids, dtype=torch.bool), query)
    tokens, marks = backbone.embed_images(images[0, 0].bfloat16()).shape[1], sum(backbone.num_marks)
    return Row(
        name=name, checkpoint=checkpoint, licence=licence, billions=count_parameters(name) / 1e9,
        hidden=backbone.hidden_dim, image_size=size, tokens=tokens - marks, marks=marks,
        gflop=counter.get_total_flops() / 1e9,
    )  # fmt: skip


def main() -> None:
    """Measure all and replace the table."""
    lines = [
        "| option | hub id | licence | parameters | hidden | view | tokens + marks | GFLOP a frame |",
        "|---" * 8 + "|",
    ]
    for name in BACKBONES.names():
        if name != "nano":
            lines.append(str(measure(name)))
            print(lines[-1], flush=True)
    replace_table(PAGE, "benchmarks/backbones.py", lines)


if __name__ == "__main__":
    main()
