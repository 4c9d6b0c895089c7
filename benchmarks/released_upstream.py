"""RoboVLMs' own classes at small size: what they compute on given frames, and their weights as its trainer saves them.

Run by `released_parity.py` with the interpreter of an environment of RoboVLMs' own (transformers 4.37 for Kosmos and
Flamingo, 4.44 for PaliGemma), never with ours: both packages are called robovlms. Classes of RoboVLMs run unchanged;
what they import and do not need here (torchvision, its data sets) is replaced by empty modules, and where they would
download a model they get one with random weights.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

ROOT = Path(os.environ.get("ROBOVLMS_ROOT", "RoboVLMs"))
MEANS = {
    "kosmos": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "paligemma": ([0.5] * 3, [0.5] * 3),
}
CLASSES = {"kosmos": "RoboKosMos", "paligemma": "RoboPaligemma", "flamingo": "RoboFlamingo"}


def empty_modules() -> None:
    """Put empty modules where RoboVLMs imports what is not needed."""
    import transformers  # noqa: F401  (before them: it asks which are there)

    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops",
                 "torchvision.ops.misc", "timm"):  # fmt: skip
        module = MagicMock()
        module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
        module.__version__ = "0.0"
        sys.modules[name] = module
    sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = torch.nn.Module
    data = types.ModuleType("robovlms.data")
    data.__path__ = [str(ROOT / "robovlms" / "data")]
    sys.modules["robovlms.data"] = data


def patch_kosmos() -> None:
    """Load RoboVLMs' Kosmos-2, which it copies over the installed one."""
    import transformers.models.kosmos2 as package

    name = f"{package.__name__}.modeling_kosmos2"
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / "modeling_kosmos2.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def tokenizer_of(folder: Path) -> Any:
    """Read a fast tokenizer's file without its class, whose constructor differs between versions."""
    from transformers import PreTrainedTokenizerFast

    values = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    marks = {key: values[key] for key in ("bos_token", "eos_token", "pad_token", "unk_token") if values.get(key)}
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    older = folder / "tokenizer_older.json"
    older.write_text(text.replace('"prepend_scheme"', '"add_prefix_space": true, "prepend_scheme"'), encoding="utf-8")
    return PreTrainedTokenizerFast(tokenizer_file=str(older), **marks)


def random_vlm(folder: Path) -> Any:
    """Build the folder's architecture with random weights."""
    import transformers

    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if values["model_type"] == "kosmos-2":
        parts = {key: values[key] for key in ("text_config", "vision_config", "latent_query_num")}
        return transformers.Kosmos2ForConditionalGeneration(transformers.Kosmos2Config(**parts))
    keys = ("text_config", "vision_config", "projection_dim", "hidden_size", "image_token_index")
    config = transformers.PaliGemmaConfig(**{key: values[key] for key in keys if key in values})
    return transformers.PaliGemmaForConditionalGeneration(config)


def small_flamingo(base: Any, tokenizer: Any, folder: Path) -> None:
    """Let RoboVLMs' Flamingo find a small CLIP and a small decoder where it would download them."""
    import open_clip
    import robovlms.model.backbone.roboflamingo as module
    import transformers

    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    vision, text = values["vision_config"], values["text_config"]
    sizes = {
        "layers": vision["num_hidden_layers"], "width": vision["hidden_size"], "patch_size": vision["patch_size"],
        "head_width": vision["hidden_size"] // vision["num_attention_heads"], "image_size": vision["image_size"],
    }  # fmt: skip
    clip = open_clip.CLIP(8, open_clip.CLIPVisionCfg(**sizes), open_clip.CLIPTextCfg(8, 20, 32, 2, 1), quick_gelu=True)
    clip.visual.output_tokens = True
    module.clip_vision_encoder = lambda *_: (clip, None, vision["hidden_size"])
    module.build_tokenizer = lambda _: base.update_tokenizer(tokenizer, {"type": ""})
    config = transformers.CONFIG_MAPPING[text["model_type"]](**{
        key: value for key, value in text.items() if key not in ("model_type", "transformers_version", "dtype")
    })  # fmt: skip
    module.build_llm_flamingo = lambda _: transformers.AutoModelForCausalLM.from_config(config)


def build(case: dict[str, Any]) -> Any:
    """Build RoboVLMs' model of a configuration."""
    import robovlms.model.backbone as backbones
    import robovlms.model.backbone.base_backbone as base

    config, folder = case["config"], Path(case["vlm"])
    torch.manual_seed(case["seed"])
    tokenizer = tokenizer_of(folder)
    if config["model"] == "flamingo":
        small_flamingo(base, tokenizer, folder)
    base.build_vlm = lambda *_: (types.SimpleNamespace(tokenizer=tokenizer), random_vlm(folder))
    model = getattr(backbones, config["robovlm_name"])(
        configs=config,
        train_setup_configs=config["train_setup"],
        fwd_head_configs=config["fwd_head"],
        window_size=config["window_size"],
        use_hand_rgb=config["use_hand_rgb"],
        act_head_configs=config["act_head"],
        fwd_pred_next_n=config["fwd_pred_next_n"],
        use_vision_resampler=config.get("use_vision_resampler", False),
        vision_resampler_configs=config.get("vision_resampler", None),
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("action_token", "gate")):
                parameter.normal_(std=0.5)
            elif parameter.ndim > 1:  # at the start, features and actions hardly depend on what is seen
                parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5)
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def act(model: Any, case: dict[str, Any], frames: dict[str, np.ndarray], instruction: str) -> dict[str, np.ndarray]:
    """Run windows as in training and streams as in RoboVLMs' evaluation; return features and actions of all frames."""
    from robovlms.data.data_utils import get_text_function

    family = case["config"]["model"]
    ids, mask = get_text_function(model.tokenizer, family)([instruction])
    mean, std = (np.array(value, np.float32) for value in MEANS.get(family, MEANS["kosmos"]))
    views = {
        view: torch.from_numpy(((pictures / np.float32(255) - mean) / std).astype(np.float32)).movedim(-1, 1)[None]
        for view, pictures in frames.items()
    }
    seen: list[torch.Tensor] = []
    model.act_head.register_forward_pre_hook(lambda _, args, kwargs=None: seen.append(args[0]))

    def ask(first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        hand = views["wrist"][:, first:last] if case["config"]["use_hand_rgb"] else None
        arm, gripper = model.inference(
            views["side"][:, first:last], ids, attention_mask=mask.bool(), vision_gripper=hand
        )["action"]
        features = seen.pop()
        features = features.amax(2) if family == "flamingo" else features.flatten(2)  # its head pools
        return features.numpy()[0], arm.numpy()[0], gripper.reshape(*arm.shape[:-1]).numpy()[0]

    w, total = case["config"]["window_size"], len(frames["side"])
    features, arm, gripper = ask(0, w)
    if hasattr(model.act_head, "reset") or hasattr(model.act_head, "history_memory"):
        model.act_head.hidden_state, model.act_head.history_memory = None, []
    streamed: list[tuple[np.ndarray, np.ndarray]] = []
    for step in range(total):
        is_interleaved = case["config"]["act_head"]["history_type"] == "pre"
        first = max(0, step - w + 1) if is_interleaved else step
        _, step_arm, step_gripper = ask(first, step + 1)
        streamed.append((step_arm[-1], step_gripper[-1]))
    return {
        "ids": ids.numpy(), "features": features, "arm": arm, "gripper": gripper,
        "streamed_arm": np.stack([each for each, _ in streamed]),
        "streamed_gripper": np.stack([each for _, each in streamed]),
    }  # fmt: skip


def main(folder: Path) -> None:
    """Read case.json and frames.npz of a folder; write weights.pt and upstream.npz into it."""
    sys.path.insert(0, str(ROOT))
    empty_modules()
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    if case["config"]["model"] == "kosmos":
        patch_kosmos()
    model = build(copy.deepcopy(case))
    frames = dict(np.load(folder / "frames.npz"))
    np.savez(folder / "upstream.npz", **act(model, case, frames, case["instruction"]))
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    hyper = {"configs": case["config"]}
    torch.save({"state_dict": state, "epoch": 4, "global_step": 1, "hyper_parameters": hyper}, folder / "weights.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
