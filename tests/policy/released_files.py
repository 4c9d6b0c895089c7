"""Checkpoints as RoboVLMs' trainer writes them, of small sizes: recorded names and shapes, random numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessorPil

from robovlms.backbones.families._flamingo_shared import FlamingoConfig, FlamingoModel, tiny_tokenizer
from robovlms.backbones.tiny import TINY_TEXT, TINY_VISION
from robovlms.commands.convert_checkpoint import convert_checkpoint
from robovlms.config.commands import ConvertCheckpointConfig, ReleasedBackboneConfig
from robovlms.registry import BACKBONES

# Of benchmarks/released_parity.py --record: shape and, of layers (`*`), their numbers; by family and by head.
TENSORS = json.loads((Path(__file__).parent / "released" / "tensors.json").read_text(encoding="utf-8"))
HEADS = {"lstm": "LSTMDecoder", "gpt": "GPTDecoder", "mlp": "FCDecoder"}
FAMILIES = {"kosmos": "RoboKosMos", "paligemma": "RoboPaligemma", "flamingo": "RoboFlamingo"}
AGAIN = "model.model."  # Flamingo's second name of model.backbone.


def configuration(family: str = "kosmos", head: str = "lstm", **changes: Any) -> dict[str, Any]:
    """Return RoboVLMs' keys that a checkpoint's file has; `act_head` and other parts are changed key by key."""
    space = "down_sample" if family == "flamingo" else "continuous"
    values: dict[str, Any] = {
        "robovlm_name": FAMILIES[family], "model": family, "window_size": 8, "fwd_pred_next_n": 10, "seed": 123,
        "batch_size": 4, "learning_rate": 2e-5, "weight_decay": 0, "warmup_epochs": 0.25, "warmup_steps": 0,
        "arm_gripper_loss_ratio": 0.01, "use_hand_rgb": True, "norm_action": True, "norm_min": -0.65, "norm_max": 0.65,
        "fwd_head": None, "act_encoder": None, "use_vision_resampler": False,
        "train_setup": {"train_vision": True, "freeze_backbone": False, "train_text_embedding": True},
        "act_head": {
            "type": HEADS[head], "hidden_size": 32, "action_dim": 7, "latent": 1, "action_space": space,
            "down_sample": "pooling" if family == "flamingo" else "none", "history_type": "post",
            "fwd_pred_next_n": 1, "window_size": 1,
        },
        "trainer": {"precision": "16", "max_epochs": 5, "max_steps": -1, "gradient_clip_val": 1.0},
        "train_dataset": {"type": "DiskCalvinDataset", "data_dir": "task_ABCD_D/training", "rgb_pad": 10,
                          "gripper_pad": 4},
    }  # fmt: skip
    for key, value in changes.items():
        are_parts = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = {**values[key], **value} if are_parts else value
    return values


def weights(family: str = "kosmos", head: str = "lstm") -> dict[str, torch.Tensor]:
    """Return random tensors under the names that RoboVLMs' trainer saves."""
    generator, made = torch.Generator().manual_seed(0), {}
    for pattern, (shape, layers) in {**TENSORS[family], **TENSORS[head]}.items():
        if family == "flamingo" and pattern == "model.action_token":
            continue
        for name in [pattern.replace("*", str(layer)) for layer in layers] or [pattern]:
            made[name] = 0.1 * torch.randn(shape, generator=generator)
    made |= {key: made[key.replace(AGAIN, "model.backbone.")] for key in made if key.startswith(AGAIN)}
    return made


def vlm(family: str, folder: Path) -> Path:
    """Write what a checkpoint needs of its VLM: config, tokenizer, image processor, no weights."""
    backbone = BACKBONES.get(family).tiny()
    if family == "flamingo":
        tokenizer = tiny_tokenizer()
        text = {**TINY_TEXT, "model_type": "gpt_neox", "num_hidden_layers": 4, "vocab_size": len(tokenizer)}
        vision = {**TINY_VISION, "intermediate_size": 4 * TINY_VISION["hidden_size"]}
        size = {"height": vision["image_size"], "width": vision["image_size"]}
        processor = CLIPImageProcessorPil(size={"shortest_edge": vision["image_size"]}, crop_size=size)
        model = FlamingoModel(FlamingoConfig(vision, text, cross_attention_every=2))
        backbone = type(backbone)(model, tokenizer, processor)
    backbone.save_pretrained(folder, weights=False)
    return folder


def write(folder: Path, values: dict[str, Any], tensors: Any, name: str = "weights.pt") -> tuple[Path, Path]:
    """Write a file of weights and its configuration; return both."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    torch.save({"state_dict": tensors, "epoch": 4, "hyper_parameters": {"configs": values}}, folder / name)
    return folder / name, folder / "config.json"


def convert(source: Path, config: Path, output: Path, checkpoint: Path, data: Any) -> Path:
    """Run the command; return what it wrote."""
    convert_checkpoint(
        ConvertCheckpointConfig(
            source=str(source), config=str(config), output_dir=str(output), data=data,
            backbone=ReleasedBackboneConfig(checkpoint=str(checkpoint)),
        )
    )  # fmt: skip
    return output
