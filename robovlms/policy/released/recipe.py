"""RoboVLMs' configuration as a run of ours."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from robovlms.config.choices import NormalizationMode, Precision, ScheduleName, Structure
from robovlms.config.closed_loop import CollectConfig, EvaluationConfig
from robovlms.config.data import DataConfig, NormalizationConfig
from robovlms.config.policy import BackboneConfig, HeadConfig, StructureConfig, ViewConfig, WindowConfig
from robovlms.config.run import TrainConfig
from robovlms.config.schemas import schema_of
from robovlms.config.training import (
    ClusterConfig,
    OptimizerConfig,
    PrecisionConfig,
    ScheduleConfig,
    TrackingConfig,
    TrainerConfig,
)
from robovlms.errors import UserError
from robovlms.policy.released.settings import Settings
from robovlms.training.schemas.parallel import DDPConfig

HEADS = {"LSTMDecoder": "lstm", "GPTDecoder": "gpt", "FCDecoder": "mlp"}
PROMPTS = {"kosmos": "<grounding>An image of a robot {instruction}"}
ORIGINALS = {
    "kosmos": "microsoft/kosmos-2-patch14-224",
    "paligemma": "google/paligemma-3b-pt-224",
    "flamingo": "checkpoints/flamingo",
}  # the last is written by scripts/convert_backbone.py
CALVIN, OXE = "DiskCalvinDataset", "OpenVLADataset"  # data sets of RoboVLMs


def train_config(settings: Settings, data: DataConfig, checkpoint: str | None) -> TrainConfig:
    """Return the run that a released configuration describes.

    Args:
        settings: RoboVLMs' configuration.
        data: what its actions mean; normalisation and shifts are the configuration's.
        checkpoint: folder or hub id of the VLM's configuration, tokenizer and image processor; None: the one that the
            configuration names, if it is here, or the published one.

    Raises:
        UserError: something is missing, or is not converted; names the key.
    """
    settings.check()
    views = _views(settings)
    try:
        return TrainConfig(
            **_policy(settings, checkpoint),
            **_training(settings),
            view=ViewConfig(views=views),
            data=_data(settings, data, views),
        )
    except UserError as error:
        if str(error).startswith("config="):
            raise
        raise UserError(f"config={settings.path}: {error}") from error


def family_of(settings: Settings) -> str:
    """Return the VLM's family, by RoboVLMs' name.

    Raises:
        UserError: it is not converted.
    """
    family = settings.get("model", str)
    if family not in ORIGINALS:
        raise settings.wrong("model", f"is {family!r}: {', '.join(ORIGINALS)} are converted.")
    return family


def _policy(settings: Settings, checkpoint: str | None) -> dict[str, Any]:
    structure, head = _structure(settings), _head(settings)
    window = WindowConfig(window_size=settings.get("window_size", int), chunk_size=settings.get("fwd_pred_next_n", int))
    return {
        "backbone": _backbone(settings, structure, checkpoint),
        "head": head,
        "structure": StructureConfig(name=structure),
        "window": window,
    }


def _structure(settings: Settings) -> Structure:
    if settings.get("act_head.history_type", str, "post") == "pre":
        return Structure.interleaved
    is_one_step = settings.get("window_size", int) == 1 and settings.get("act_head.type", str) == "FCDecoder"
    return Structure.one_step if is_one_step else Structure.policy_head


def _head(settings: Settings) -> HeadConfig:
    kind = settings.get("act_head.type", str)
    if kind not in HEADS:
        raise settings.wrong("act_head.type", f"is {kind!r}: {', '.join(HEADS)} are converted.")
    if (entries := settings.get("act_head.action_dim", int, 7)) != 7:
        raise settings.wrong("act_head.action_dim", f"is {entries}: policies of 7 entries are converted.")
    name = HEADS[kind]
    config: HeadConfig = schema_of("head", name)(
        name=name,
        num_queries=settings.get("act_head.latent", int, 1),
        gripper_weight=settings.get("arm_gripper_loss_ratio", float, 0.01),
        hidden_dim=settings.get("act_head.hidden_size", int, 1024),
    )
    return config


def _backbone(settings: Settings, structure: Structure, checkpoint: str | None) -> BackboneConfig:
    family, layers = family_of(settings), settings.get("train_setup.train_decoder_layers", int, -1)
    _check_features(settings, family)
    is_flamingo, trains = family == "flamingo", partial(settings.get, kind=bool)
    is_frozen = trains("train_setup.freeze_backbone", default=False)
    has_text = trains("train_setup.train_full_decoder", default=False) if is_flamingo else True
    return BackboneConfig(
        name=_name(family, structure),
        checkpoint=checkpoint or ORIGINALS[family],
        prompt=PROMPTS.get(family, "{instruction}"),
        freeze_vision=is_frozen or not trains("train_setup.train_vision", default=True),
        freeze_text=is_frozen or not has_text,
        freeze_embeddings=is_frozen or not trains("train_setup.train_text_embedding", default=True),
        train_text_layers=layers if layers > 0 and not is_flamingo else None,
        attn_implementation="eager" if is_flamingo else "sdpa",
    )


def _check_features(settings: Settings, family: str) -> None:
    """Refuse features that RoboVLMs reads in another way than at its action token, or for Flamingo than pooled."""
    found = settings.get("act_head.action_space", str, "continuous")
    if family != "flamingo":
        if found != "continuous":
            raise settings.wrong("act_head.action_space", f"is {found!r}: with {family}, 'continuous' is converted.")
        return
    if found != "down_sample":
        raise settings.wrong(
            "act_head.action_space", f"is {found!r}: RoboVLMs' Flamingo runs with 'down_sample' alone."
        )
    if "llama" in settings.get("vlm.name", str, ""):
        raise settings.wrong("vlm.name", "is a LLaMA, whose tokens behind <image> depend on its tokenizer's version.")
    wanted = {"act_head.down_sample": "pooling", "act_head.token_source": "all"}
    for key, value in wanted.items():
        if settings.get(key, str, value) != value:
            raise settings.wrong(key, f"is {settings.get(key, str)!r}: with flamingo, {value!r} is converted.")
    if settings.get("act_head.latent", int, 1) != 1:
        raise settings.wrong("act_head.latent", "is not 1, which alone is converted with flamingo.")


def _name(family: str, structure: Structure) -> str:
    """Return the backbone that lays tokens out as RoboVLMs does: Kosmos-2 does so of itself, within a frame."""
    return "kosmos" if family == "kosmos" and structure is not Structure.interleaved else f"{family}_upstream"


def _views(settings: Settings) -> list[str]:
    """Return the cameras. RoboVLMs' RLDS data have one, whatever the configuration says."""
    has_wrist = settings.get("use_hand_rgb", bool) and settings.get("train_dataset.type", str) != OXE
    return ["side", "wrist"] if has_wrist else ["side"]


def _data(settings: Settings, data: DataConfig, views: list[str]) -> DataConfig:
    kind = settings.get("train_dataset.type", str)
    if kind not in (CALVIN, OXE):
        raise settings.wrong("train_dataset.type", f"is {kind!r}: {CALVIN} and {OXE} are converted.")
    if (kind == CALVIN) != (data.name == "calvin"):
        mix = settings.get("train_dataset.data_mix", str, "")
        right = "data=calvin" if kind == CALVIN else "data=bridge or data=fractal, the robot that it shall act for"
        found = f"is {kind} {mix}".rstrip()
        raise settings.wrong("train_dataset.type", f"{found}: add {right} (now its kind is {data.name}).")
    folder = settings.get("train_dataset.data_dir" if kind == CALVIN else "train_dataset.data_root_dir", str, "")
    pads = {"side": "train_dataset.rgb_pad", "wrist": "train_dataset.gripper_pad"}
    return replace(
        data,
        root=data.root or folder,
        normalization=_normalization(settings, data.normalization, kind),
        shift={view: settings.get(pads[view], int, -1) for view in views if settings.get(pads[view], int, -1) > 0},
    )


def _normalization(settings: Settings, ours: NormalizationConfig, kind: str) -> NormalizationConfig:
    """Return how actions reach [-1, 1]: RoboVLMs' bounds, which on RLDS data lie within those of the statistics."""
    mu = float(settings.get("mu_val", float, 255.0)) if settings.get("use_mu_law", bool, False) else 0.0
    if not settings.get("norm_action", bool, hint="RoboVLMs' own files have true, norm_min -0.65 and norm_max 0.65"):
        mode = NormalizationMode.identity if kind == CALVIN else ours.mode
        return replace(ours, mode=mode, mu=mu)
    low, high = settings.get("norm_min", float), settings.get("norm_max", float)
    if low >= high:
        raise settings.wrong("norm_min", f"is {low:g}: it must be below norm_max, {high:g}.")
    if kind == CALVIN:
        return replace(ours, mode=NormalizationMode.bounds, low=low, high=high, mu=mu)
    if low != -high:
        raise settings.wrong("norm_min", f"is {low:g}: with RLDS data it must be -norm_max, {-high:g}.")
    return replace(ours, share=high, mu=mu)


def _training(settings: Settings) -> dict[str, Any]:
    """Return optimizer, schedule and machine; RoboVLMs' batch size is that of one GPU, and the number of GPUs is not
    in the file.
    """
    name, batch = settings.path.stem, settings.get("batch_size", int, 1)
    clip = settings.get("gradient_clip_val", float, 0.0)  # the trainer's own counts in no run of RoboVLMs
    return {
        "name": name,
        "output_dir": f"runs/{name}",
        "seed": settings.get("seed", int, 0),
        "batch_size": batch * settings.get("trainer.accumulate_grad_batches", int, 1),
        "device_batch_size": batch,
        "optimizer": OptimizerConfig(
            name="adamw",
            lr=settings.get("learning_rate", float, 2e-5),
            weight_decay=settings.get("weight_decay", float, 0.0),
            max_grad_norm=clip or None,
        ),
        "schedule": _schedule(settings),
        "precision": PrecisionConfig(name=Precision.bf16),
        "parallel": DDPConfig(name="ddp"),
        "cluster": ClusterConfig(name="local", device_batch_size=batch),
        "tracking": TrackingConfig(),
        "trainer": TrainerConfig(),
        "collect": CollectConfig(),
        "evaluation": EvaluationConfig(),
    }


def _schedule(settings: Settings) -> ScheduleConfig:
    steps, warmup_steps = settings.get("trainer.max_steps", int, -1), settings.get("warmup_steps", int, 0)
    warmup = f"{warmup_steps} step" if warmup_steps else f"{settings.get('warmup_epochs', float, 0.0):g} epoch"
    is_constant = settings.get("scheduler", str, "constant") == "constant"
    return ScheduleConfig(
        name=ScheduleName.constant if is_constant else ScheduleName.cosine,
        warmup=warmup,
        total=f"{steps} step" if steps > 0 else f"{settings.get('trainer.max_epochs', int, 5)} epoch",
    )
