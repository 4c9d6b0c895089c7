"""RoboVLMs' own classes against their converted checkpoints: token ids, features, actions and streams.

    ROBOVLMS_ROOT=RoboVLMs ROBOVLMS_PYTHON=/path/to/its/python python benchmarks/released_parity.py [case ...]

RoboVLMs is built at small size with random weights in an environment of its own (`released_upstream.py`), saved as its
trainer saves, converted by `scripts/convert_checkpoint.py`, and both act on the same frames. PaliGemma needs another
transformers than the others: name its interpreter in ROBOVLMS_PYTHON_PALIGEMMA. `--record file.json` writes names and
shapes of the tensors, for tests that have no RoboVLMs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPImageProcessorPil

from robovlms.backbones.families._flamingo_shared import FlamingoConfig, FlamingoModel
from robovlms.backbones.families._flamingo_shared import tiny_tokenizer as byte_tokenizer
from robovlms.backbones.tiny import TINY_VISION
from robovlms.policy.checkpoint import load_policy
from robovlms.policy.runner import PolicyRunner
from robovlms.registry import BACKBONES
from robovlms.types import Batch, Observation

HERE = Path(__file__).parent
LARGEST = 1e-4  # difference that passes
INSTRUCTIONS = ["open the drawer", "push the red block to the left, slowly"]
KOSMOS = "calvin_finetune/finetune_kosmos_cont-lstm-post_full-ft_text_vision_wd-0_use-hand_ws-16_act-10.json"
PALIGEMMA = "calvin_finetune/finetune_paligemma_cont-lstm-post_full-ft_text_vision_wd=0_ws-8_act-10.json"
FLAMINGO = "calvin_finetune/finetune_flamingo_mpt_3b_ws-8_act-10_lstm_calvin.json"
Case = dict[str, Any]
CASES: dict[str, Case] = {
    "kosmos_lstm_w16": {"file": KOSMOS},
    "kosmos_lstm_w8_side": {"file": KOSMOS, "window_size": 8, "use_hand_rgb": False},
    "kosmos_lstm_two_queries": {"file": KOSMOS, "window_size": 4, "act_head": {"latent": 2}},
    "kosmos_gpt_w8": {"file": KOSMOS, "window_size": 8, "act_head": {"type": "GPTDecoder"}},
    "kosmos_gpt_as_wide": {"file": KOSMOS, "window_size": 4, "act_head": {"type": "GPTDecoder", "hidden_size": 64}},
    "kosmos_mlp_w8": {"file": KOSMOS, "window_size": 8, "act_head": {"type": "FCDecoder"}},
    "kosmos_one_step": {"file": KOSMOS, "window_size": 1, "act_head": {"type": "FCDecoder"}},
    "kosmos_interleaved_w8": {"file": KOSMOS, "window_size": 8,
                              "act_head": {"type": "FCDecoder", "history_type": "pre"}},
    "kosmos_interleaved_w16_side": {"file": KOSMOS, "use_hand_rgb": False,
                                    "act_head": {"type": "FCDecoder", "history_type": "pre"}},
    "paligemma_lstm_w8": {"file": PALIGEMMA},
    "paligemma_gpt_w4_wrist": {"file": PALIGEMMA, "window_size": 4, "use_hand_rgb": True,
                               "act_head": {"type": "GPTDecoder"}},
    "paligemma_one_step": {"file": PALIGEMMA, "window_size": 1, "act_head": {"type": "FCDecoder"}},
    "paligemma_interleaved_w4": {"file": PALIGEMMA, "window_size": 4,
                                 "act_head": {"type": "FCDecoder", "history_type": "pre"}},
    "flamingo_mpt_lstm_w8": {"file": FLAMINGO, "decoder": "mpt", "name": "mpt_7b"},
    "flamingo_mpt_gpt_w4_wrist": {"file": FLAMINGO, "decoder": "mpt", "name": "mpt_1b", "window_size": 4,
                                  "use_hand_rgb": True, "act_head": {"type": "GPTDecoder"}},
    "flamingo_neox_mlp_w4": {"file": FLAMINGO, "decoder": "gpt_neox", "name": "mpt_3b", "window_size": 4,
                             "act_head": {"type": "FCDecoder"}},
}  # fmt: skip
EVERY = {"mpt_1b": 1, "mpt_3b": 2, "mpt_7b": 4}  # RoboVLMs flamingo_builder.py
OPTIONS = ("file", "decoder", "name")  # of a case; the others are RoboVLMs' keys


def configuration(root: Path, case: Case) -> dict[str, Any]:
    """Return RoboVLMs' configuration of a case, its head narrowed."""
    values = json.loads((root / "configs" / case["file"]).read_text(encoding="utf-8"))
    head = {**values["act_head"], "hidden_size": 32, **case.get("act_head", {})}
    values |= {key: value for key, value in case.items() if key not in OPTIONS} | {"act_head": head}
    if "name" in case:
        values["vlm"]["name"] = case["name"]
        values["train_setup"]["load_vl_param"] = False
    return values


def small_backbone(family: str, case: Case) -> Any:
    """Build the VLM that both sides have, with random weights that neither keeps."""
    if family != "flamingo":
        return BACKBONES.get(family).tiny()
    wide = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    mpt = {"d_model": 64, "n_heads": 4, "n_layers": 4}
    tokenizer = byte_tokenizer()
    sizes = mpt if case["decoder"] == "mpt" else wide
    text = {"model_type": case["decoder"], "vocab_size": len(tokenizer), **sizes}
    vision = {**TINY_VISION, "intermediate_size": 4 * TINY_VISION["hidden_size"]}
    config = FlamingoConfig(vision, text, cross_attention_every=EVERY[case["name"]])
    size = {"height": vision["image_size"], "width": vision["image_size"]}
    processor = CLIPImageProcessorPil(size={"shortest_edge": vision["image_size"]}, crop_size=size)
    return BACKBONES.get("flamingo")(FlamingoModel(config), tokenizer, processor)


def run_upstream(folder: Path, values: dict[str, Any], case: Case, instruction: str) -> dict[str, np.ndarray]:
    """Let RoboVLMs act; return what it computed."""
    family = values["model"]
    backbone = small_backbone(family, case)
    backbone.save_pretrained(folder / "vlm", weights=False)
    values["vlm"]["pretrained_model_name_or_path"] = str(folder / "vlm")
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    task = {"config": values, "vlm": str(folder / "vlm"), "seed": 0, "instruction": instruction}
    (folder / "case.json").write_text(json.dumps(task), encoding="utf-8")
    generator, size = np.random.default_rng(0), backbone.image_spec.size
    shape = (values["window_size"] + 2, size, size, 3)
    np.savez(folder / "frames.npz", **{v: generator.integers(0, 256, shape, np.uint8) for v in ("side", "wrist")})
    python = os.environ.get(f"ROBOVLMS_PYTHON_{family.upper()}", os.environ["ROBOVLMS_PYTHON"])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [*python.split(), str(HERE / "released_upstream.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"RoboVLMs failed:\n{done.stderr[-3000:]}")
    return dict(np.load(folder / "upstream.npz"))


def convert(folder: Path) -> None:
    """Run the command."""
    options = {
        "source": folder / "weights.pt", "config": folder / "config.json", "output_dir": folder / "converted",
        "backbone.checkpoint": folder / "vlm",
    }  # fmt: skip
    command = [sys.executable, str(HERE.parent / "scripts" / "convert_checkpoint.py")]
    subprocess.run([*command, *(f"{key}={value}" for key, value in options.items())], check=True, capture_output=True)


@torch.no_grad()
def differences(folder: Path, expected: dict[str, np.ndarray], instruction: str) -> dict[str, float]:
    """Return the largest difference of features, actions and streams."""
    config, policy, _, _ = load_policy(folder / "converted")
    policy.eval()
    frames = dict(np.load(folder / "frames.npz"))
    w = config.window.window_size
    ids, mask = policy.processor.text([instruction])
    seen = {view: torch.from_numpy(frames[view][None, :w]) for view in config.view.views}
    batch = Batch(frames=seen, text_ids=ids, text_mask=mask)
    features = policy.read(batch, policy.head.queries(1, w))
    arm, gripper = policy.head.decode(features)
    found = {"features": features.flatten(2), "arm": arm, "gripper": gripper}
    rows = [ids[0].tolist(), expected["ids"][0].tolist()]
    is_alike = rows[0] in (rows[1], rows[1][:-1], [rows[1][-1], *rows[1][:-1]])  # the last may close the frame
    gaps = {"ids": float(not is_alike)}
    gaps |= {key: float((value[0] - torch.from_numpy(expected[key])).abs().max()) for key, value in found.items()}
    runner = PolicyRunner.from_checkpoint(folder / "converted")
    low, high = config.data.normalization.low, config.data.normalization.high
    pictures = [{view: frames[view][step] for view in config.view.views} for step in range(len(frames["side"]))]
    streamed = [runner.step(Observation(frames=each, instruction=instruction)) for each in pictures]
    arms = (expected["streamed_arm"][:, 0] + 1) / 2 * (high - low) + low  # RoboVLMs unnoramalize_action
    signs = np.where(expected["streamed_gripper"][:, 0] > 0, 1, -1)
    gaps["stream"] = float(np.abs(np.stack(streamed) - np.concatenate([arms, signs[:, None]], axis=1)).max())
    return gaps


def record(folder: Path) -> dict[str, list[Any]]:
    """Return names and shapes of RoboVLMs' tensors: those of all layers as one name with `*`, and the layers."""
    state = torch.load(folder / "weights.pt", weights_only=True)["state_dict"]
    found: dict[str, list[Any]] = {}
    for key, value in state.items():
        layer = re.search(r"(?<=layers\.|blocks\.)\d+|(?<=\.h\.)\d+", key)
        name = f"{key[: layer.start()]}*{key[layer.end() :]}" if layer else key
        found.setdefault(name, [list(value.shape), []])[1] += [int(layer[0])] if layer else []
    return found


def main() -> int:
    """Run the cases named, or all; return 1 if one differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="of: " + ", ".join(CASES))
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    if lacking := [name for name in ("ROBOVLMS_ROOT", "ROBOVLMS_PYTHON") if name not in os.environ]:
        raise SystemExit(f"set {' and '.join(lacking)}: {__doc__}")
    recorded, status = {}, 0
    for name in arguments.cases or CASES:
        for instruction in INSTRUCTIONS:
            with tempfile.TemporaryDirectory() as temporary:
                folder, values = Path(temporary), configuration(Path(os.environ["ROBOVLMS_ROOT"]), CASES[name])
                expected = run_upstream(folder, values, CASES[name], instruction)
                convert(folder)
                gaps = differences(folder, expected, instruction)
                recorded[name] = record(folder)
            moves = float(np.ptp(expected["streamed_arm"][:, 0], axis=0).max())  # or any two would be near
            is_near = max(gaps.values()) <= LARGEST < 100 * LARGEST < moves
            status |= not is_near
            told = "  ".join(f"{key} {value:.1e}" for key, value in gaps.items())
            print(f"{name:28} {told}  moves {moves:.2f}  {'ok' if is_near else 'DIFFERENT'}", flush=True)
    if arguments.record:
        arguments.record.write_text(json.dumps(recorded), encoding="utf-8")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
