"""Under which licence published models stand, which a policy made of one inherits.

What is not in the table is unknown, and said to be so: nothing is guessed from a name. Source: the `license` field of
each model card, https://huggingface.co/<model>, as recorded in configs/backbone/<name>.yaml.
"""

from __future__ import annotations

from typing import NamedTuple


class Licence(NamedTuple):
    """A licence as the Hub writes it."""

    identifier: str  # of the Hub's list; other: `name` and `link` say which
    name: str = ""
    link: str = ""


UNKNOWN = Licence("unknown")
MIT, APACHE, GEMMA, LLAMA2 = Licence("mit"), Licence("apache-2.0"), Licence("gemma"), Licence("llama2")
LICENCES = {
    "google/gemma-3-4b-it": GEMMA,
    "google/gemma-4-E2B-it": APACHE,
    "google/paligemma-3b-pt-224": GEMMA,
    "google/paligemma2-3b-pt-224": GEMMA,
    "florence-community/Florence-2-base": MIT,
    "HuggingFaceM4/Idefics3-8B-Llama3": APACHE,  # its decoder is under the terms of Llama 3.1
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": APACHE,
    "LiquidAI/LFM2-VL-450M": Licence(
        "other", "lfm1.0", "https://huggingface.co/LiquidAI/LFM2-VL-450M/blob/main/LICENSE"
    ),
    "llava-hf/llava-1.5-7b-hf": LLAMA2,
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": APACHE,
    "microsoft/kosmos-2-patch14-224": MIT,
    "openflamingo/OpenFlamingo-3B-vitl-mpt1b": MIT,  # CLIP and the decoder have their own
    "Qwen/Qwen-VL": Licence("other", "tongyi-qianwen", "https://huggingface.co/Qwen/Qwen-VL/blob/main/LICENSE"),
    "Qwen/Qwen2.5-VL-3B-Instruct": Licence(  # not for commercial use
        "other", "qwen-research", "https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/LICENSE"
    ),
    "Qwen/Qwen3-VL-2B-Instruct": APACHE,
    "Qwen/Qwen3.5-2B": APACHE,
    "unum-cloud/uform-gen2-qwen-500m": APACHE,
    "vikhyatk/moondream2": APACHE,
}
CONVERTED = {  # folders that the presets expect an original to be converted to
    "checkpoints/flamingo": "openflamingo/OpenFlamingo-3B-vitl-mpt1b",
    "checkpoints/moondream": "vikhyatk/moondream2",
    "checkpoints/qwen_vl": "Qwen/Qwen-VL",
    "checkpoints/uform": "unum-cloud/uform-gen2-qwen-500m",
}


def licence_of(model: str | None) -> Licence:
    """Return the licence of a published model, by its id on the Hub."""
    return LICENCES.get(model or "", UNKNOWN)
