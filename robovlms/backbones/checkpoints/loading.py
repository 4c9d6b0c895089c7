"""Checkpoints of Hugging Face families: from a hub id or a folder to model, tokenizer and image processor."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from robovlms.backbones.checkpoints.conversion import Convertible
from robovlms.config.choices import WeightType
from robovlms.config.policy import BackboneConfig
from robovlms.errors import UserError
from robovlms.files import refuse_pointer
from robovlms.registry import BACKBONES, nearest

logger = logging.getLogger(__name__)


def load(
    config: BackboneConfig, model_type: str, check: Callable[[dict[str, Any]], None], original: str | None
) -> tuple[PreTrainedModel, Any, Any]:
    """Return the bare model of `model_type`, its tokenizer and its image processor.

    Args:
        config: names the checkpoint.
        model_type: transformers' name of the family.
        check: sees config.json first.
        original: hub id of the files that must be converted first; None: the family is read from the hub.

    Raises:
        FileNotFoundError: a file is not available; says what was looked for and what to do.
        UserError: the checkpoint is of another family, incomplete or damaged.
    """
    source = _source(config, original)
    with _explained(config, "config.json"):
        values, _ = PreTrainedConfig.get_config_dict(source)
    if values.get("model_type") != model_type:
        convertible = issubclass(BACKBONES.get(config.name), Convertible)
        raise UserError(
            f"backbone={config.name} reads '{model_type}' checkpoints, but backbone.checkpoint={source} holds a "
            f"'{values.get('model_type', 'nameless')}' model: change one of the two options."
            + (f" Its authors' own files are converted first: {convert_command(config)}." if convertible else "")
        )
    check(values)
    with _explained(config, "the model's config"):
        model_config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    with _explained(config, "the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # some classes come up empty without their files
            raise OSError("its files hold no vocabulary")
    with _explained(config, "the image processor"):
        image_processor = AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False)
    dtype = torch.bfloat16 if config.weights is WeightType.bf16 else torch.float32
    options: dict[str, Any] = {"attn_implementation": config.attn_implementation, "dtype": dtype}
    if config.random_init:
        with _explained(config, "the model"):
            return AutoModel.from_config(model_config, **options), tokenizer, image_processor
    with _explained(config, "the weights (model.safetensors)"):
        model, info = AutoModel.from_pretrained(
            source, config=model_config, use_safetensors=True, output_loading_info=True, **options
        )
    _check_complete(config, info)
    return model, tokenizer, image_processor


def load_vocabulary_head(config: BackboneConfig, shape: tuple[int, ...]) -> Tensor:
    """Read the vocabulary head, which the bare model is loaded without.

    Raises:
        UserError: the checkpoint has none of the embedding's shape.
    """
    head = _find_vocabulary_head(config, shape)
    if head is None:
        raise UserError(
            f"cotrain needs the vocabulary head, but backbone.checkpoint={config.checkpoint} has no lm_head.weight of "
            f"{shape[0]} x {shape[1]} (scripts/convert_backbone.py and scripts/merge_lora.py do not keep it): use the "
            "published checkpoint, or another backbone."
        )
    return head


def check_tied_head(config: BackboneConfig, embedding: Tensor) -> None:
    """Make sure that the embedding is the vocabulary head, where config.json says so.

    Raises:
        UserError: the checkpoint has a head of its own.
    """
    head = _find_vocabulary_head(config, tuple(embedding.shape))
    if head is not None and not torch.equal(head.to(embedding.dtype), embedding):
        raise UserError(
            f"backbone.checkpoint={config.checkpoint} has an lm_head.weight of its own, but its config.json ties it to "
            'the embedding: write "tie_word_embeddings": false there.'
        )


def _find_vocabulary_head(config: BackboneConfig, shape: tuple[int, ...]) -> Tensor | None:
    source = _source(config)
    with _explained(config, "the vocabulary head"):
        index = cached_file(source, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
        files = (
            {"model.safetensors"}
            if index is None
            else set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
        )
        for name in sorted(files):
            path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
            if path is None:  # weights of another format
                continue
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    if key.endswith("lm_head.weight") and tuple(file.get_slice(key).get_shape()) == shape:
                        found: Tensor = file.get_tensor(key)
                        return found
    return None


def _source(config: BackboneConfig, original: str | None = None) -> str:
    """Return the folder or hub id; what can only be a path must exist, as what a conversion writes."""
    if config.checkpoint is None:
        raise UserError(
            f"backbone={config.name} needs weights: set backbone.checkpoint to a hub id or a local folder, "
            "or backbone.size=tiny for a small random model."
        )
    path = Path(config.checkpoint).expanduser()
    if original is not None and not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{path / 'config.json'} does not exist: backbone={config.name} reads a folder that is written once, "
            f"named in backbone.checkpoint. Run `hf download {original} --local-dir <folder>` where there is network, "
            f"then {convert_command(config)}."
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"{path / 'config.json'} does not exist: backbone.checkpoint must be a folder in Hugging Face format."
            )
        for file in sorted(path.iterdir()):
            refuse_pointer(file)
        return str(path)
    if path.is_absolute() or config.checkpoint.startswith((".", "~")) or config.checkpoint.count("/") > 1:
        raise FileNotFoundError(
            f"backbone.checkpoint={config.checkpoint}: there is no folder {path.absolute()}. Give a folder with "
            "config.json, tokenizer and model.safetensors, or a hub id such as owner/model."
        )
    return config.checkpoint


def convert_command(config: BackboneConfig) -> str:
    """Return the command that turns the authors' own files into a folder that can be read."""
    return f"`python scripts/convert_backbone.py family={config.name} source=<folder> output_dir=<new folder>`"


@contextmanager
def _explained(config: BackboneConfig, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(missing_message(str(config.checkpoint), what, error)) from error
    except SafetensorError as error:
        raise UserError(
            f"backbone.checkpoint={config.checkpoint}: {what} are damaged ({error}): copy or download them again."
        ) from error
    except ValueError as error:
        if "instantiate the backend tokenizer" in str(error):  # how transformers says that there is none
            raise FileNotFoundError(missing_message(str(config.checkpoint), what, error)) from error
        if "scaled_dot_product_attention" not in str(error):
            raise
        raise UserError(
            f"backbone.attn_implementation={config.attn_implementation} does not fit the decoder of "
            f"backbone.checkpoint={config.checkpoint} (e.g. Gemma 2): use backbone.attn_implementation=eager."
        ) from error


def missing_message(checkpoint: str, what: str, error: Exception) -> str:
    """Say what of a checkpoint is not available, and what to do about it."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    start = f"backbone.checkpoint={checkpoint}: cannot get {what}"
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return (
            f"{start}, the model is gated. Accept its licence on the model page '{checkpoint}' of the Hugging Face hub "
            "and log in with `hf auth login`, or set backbone.checkpoint to a folder that holds the model."
        )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if os.path.isdir(os.path.expanduser(checkpoint)):
        return f"{start} from this folder ({reason}). Copy the model's files there, or change backbone.checkpoint."
    offline = "HF_HUB_OFFLINE is set, so nothing is downloaded: unset it, or " if constants.HF_HUB_OFFLINE else ""
    return (
        f"{start}: there is no folder of that name, and the Hugging Face hub gave none ({reason}). {offline}"
        f"run `hf download {checkpoint}` once on a machine with network, or set backbone.checkpoint to a local folder."
    )


def _check_complete(config: BackboneConfig, info: dict[str, Any]) -> None:
    lacking = [str(key) for kind in ("missing_keys", "mismatched_keys") for key in info.get(kind, ())]
    if lacking:
        raise UserError(
            f"backbone.checkpoint={config.checkpoint} lacks {len(lacking)} weights of its config, e.g. {lacking[0]}: "
            "it is damaged or mixes two models. Use another one, or backbone.random_init=true for random weights."
        )
    dropped = sorted(info.get("unexpected_keys", ()))
    logger.info("%s: %d tensors of the checkpoint are not used %s", config.name, len(dropped), dropped[:8])


def check_attention(config: BackboneConfig, options: tuple[str, ...]) -> None:
    """Refuse an attention that the family has not, or that this machine cannot run.

    Raises:
        UserError: names the alternative.
    """
    choice, option = config.attn_implementation, f"backbone.attn_implementation={config.attn_implementation}"
    if choice not in options:
        raise UserError(
            f"{option} does not fit backbone={config.name}.{nearest(choice, options)} Options: {', '.join(options)}."
        )
    if choice.startswith("flash") and not (torch.cuda.is_available() and importlib.util.find_spec("flash_attn")):
        lack = "the flash_attn package" if torch.cuda.is_available() else "a GPU"
        raise UserError(f"{option} needs {lack}, which is not here: use backbone.attn_implementation=sdpa.")
