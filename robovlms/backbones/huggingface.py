"""What the Hugging Face families share: loading, tokens, freezing, saving, and errors that say what to change.

Native transformers classes only: no remote code, no copied or patched modeling files. The bare model is loaded,
without the vocabulary head, in float32 as the trainer expects, from safetensors; no weight of it may be missing.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import string
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import repeat
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError
from jaxtyping import Float, Int64
from PIL.Image import Resampling
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Tokenizer,
)

from robovlms.backbones.base import PrefixBackbone
from robovlms.choices import ModelSize, WeightType
from robovlms.config import BackboneConfig
from robovlms.registry import nearest
from robovlms.types import ImageSpec

logger = logging.getLogger(__name__)

TINY_IMAGE_SIZE = 56  # px: 4 x 4 patches of 14
TINY_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": TINY_IMAGE_SIZE, "patch_size": 14,
}  # fmt: skip
TINY_TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY_CHARACTERS = ["▁", "\n", *string.ascii_letters, *string.digits, *string.punctuation]
PRINTABLE_BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
TINY_BYTES = [chr(byte) for byte in PRINTABLE_BYTES] + [chr(256 + i) for i in range(256 - len(PRINTABLE_BYTES))]
"""GPT-2's characters for the 256 bytes: printable ones stand for themselves, the others for 256 and up."""


class HuggingFaceBackbone(PrefixBackbone):
    """A transformers VLM whose decoder takes embeddings, without its vocabulary head.

    Args:
        model: the family's bare model (`AutoModel`).
        tokenizer: the family's; `<start> prompt` is what `tokenize` gives.
        image_processor: only its mean, standard deviation and size are used; it travels along for `save_pretrained`.

    Raises:
        ValueError: the image processor or the tokenizer belongs to another model.
    """

    model_type: ClassVar[str]  # transformers' name of the family
    attentions: ClassVar[tuple[str, ...]] = ("sdpa", "eager")
    has_start: bool = True  # whether the family has a start token
    text_end: ClassVar[str] = ""  # what the family's own format puts after the prompt
    image_marks: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = ((), ())  # tokens before and behind every image

    def __init__(self, model: PreTrainedModel, tokenizer: Any, image_processor: Any) -> None:
        super().__init__()
        self.model: Any = model  # transformers' attributes are untyped
        self.tokenizer, self.image_processor = tokenizer, image_processor
        rows, self.hidden_dim = self.embedding.weight.shape
        if len(tokenizer) > rows:
            raise ValueError(
                f"The tokenizer has {len(tokenizer)} tokens, but the {self.model_type} model embeds {rows}: "
                "backbone.checkpoint mixes files of two models."
            )
        self.image_spec = self._make_image_spec()
        self.max_length = self.count_positions()
        before, behind = self._find_marks()
        self.register_buffer("mark_ids", torch.tensor([*before, *behind], dtype=torch.long), persistent=False)
        self.num_marks = (len(before), len(behind))
        for module in self.unused():
            module.requires_grad_(False)

    mark_ids: Int64[Tensor, "_marks"]

    def _find_marks(self) -> tuple[list[int], list[int]]:
        before, behind = (self.tokenizer.convert_tokens_to_ids(list(marks)) for marks in self.image_marks)
        return before, behind

    def put_marks(self, tokens: Float[Tensor, "n m e"]) -> Float[Tensor, "n _m e"]:
        """Put the family's marks around the tokens of every image."""
        marks = F.pad(self.embedding(self.mark_ids).to(tokens.dtype), (0, tokens.shape[-1] - self.hidden_dim))
        marks = repeat(marks, "marks e -> n marks e", n=len(tokens))
        return torch.cat([marks[:, : self.num_marks[0]], tokens, marks[:, self.num_marks[0] :]], dim=1)

    def image_ids(self, num_tokens: int, device: torch.device) -> Int64[Tensor, "m"]:
        """Give the ids of the marks."""
        ids = super().image_ids(num_tokens, device)
        if len(self.mark_ids):
            before, behind = self.num_marks
            ids[:before], ids[num_tokens - behind :] = self.mark_ids[:before], self.mark_ids[before:]
        return ids

    @classmethod
    @abstractmethod
    def published_config(cls) -> PreTrainedConfig:
        """Give transformers' config of the published model, with its sizes; needs no network."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> HuggingFaceBackbone:
        """Build the real architecture and tokenizer class, two layers deep, random weights, no files."""

    @classmethod
    def check_config(cls, values: dict[str, Any]) -> None:
        """Refuse a config.json of the family that this backbone cannot read.

        Raises:
            ValueError: names the backbone that can.
        """

    def count_positions(self) -> int | None:
        """Give how many tokens the decoder has positions for; None: any number."""
        count: int | None = self.model.config.get_text_config().to_dict().get("max_position_embeddings")
        return count

    def unused(self) -> list[nn.Module]:
        """Give modules whose weights no feature depends on; they are frozen, since DDP waits for every gradient."""
        return []

    @classmethod
    def processor_size(cls, processor: Any) -> tuple[int, int]:
        """Give the height and width (px) that the family's image processor makes."""
        size = processor.crop_size if processor.do_center_crop else processor.size
        return size["height"], size["width"]

    def _make_image_spec(self) -> ImageSpec:
        wanted = self.model.config.vision_config.image_size
        size, _ = wanted if isinstance(wanted, (tuple, list)) else (wanted, wanted)
        height, width = self.processor_size(self.image_processor)
        if (height, width) != (size, size):
            raise ValueError(
                f"The image processor makes {height} x {width} px, but the vision tower wants {size} x {size}: "
                "backbone.checkpoint mixes files of two models."
            )
        return self._spec_of_size(size)

    def _spec_of_size(self, size: int) -> ImageSpec:
        processor = self.image_processor
        return ImageSpec(
            size=size,
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
            resample=Resampling(processor.resample),
        )

    @classmethod
    def from_config(cls, config: BackboneConfig) -> HuggingFaceBackbone:
        """Build the model that a config names: checkpoint (hub id or folder), its architecture alone, or tiny.

        Raises:
            FileNotFoundError: the checkpoint, or a file of it, cannot be had; says what was looked for and what to do.
            ValueError: the checkpoint is of another family or incomplete, or an option does not fit the model.
        """
        _check_attention(cls, config)
        if config.size is ModelSize.tiny:
            backbone = cls.tiny()
            backbone.model.set_attn_implementation(config.attn_implementation)
        else:
            backbone = cls(*_load(cls, config))
        backbone.prompt = config.prompt
        if config.gradient_checkpointing:
            backbone.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if config.resample is not None:
            backbone.add_resampler(config.resample)
        backbone.select_trainable(config)
        parameters = list(backbone.parameters())
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        frozen = sum(p.numel() for p in parameters) - trainable
        logger.info("%s: %.1f M parameters are trained, %.1f M frozen", config.name, trainable / 1e6, frozen / 1e6)
        return backbone

    @property
    def embedding(self) -> nn.Embedding:
        """The input embedding of the text."""
        embedding: nn.Embedding = self.model.get_input_embeddings()
        return embedding

    def embed_text(self, text_ids: Int64[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        """Look the text up in the input embedding."""
        embeds: Tensor = self.embedding(text_ids)
        return embeds

    def tokenize(self, prompts: list[str]) -> list[list[int]]:
        """Give `<start> prompt` plus what the family's own format puts behind it; never the end token. Some have no
        start token.

        An end token would follow the query, and in a causal decoder nothing after the query changes its feature.
        """
        texts = [prompt.strip() + self.text_end for prompt in prompts]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        start = [self.tokenizer.bos_token_id] if self.has_start else []
        return [[*start, *row] for row in ids]

    def save_pretrained(self, folder: Path, weights: bool = True) -> None:
        """Write model, tokenizer and image processor in Hugging Face format; without `weights`, the config alone."""
        (self.model if weights else self.model.config).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


def tiny_qwen_tokenizer(marks: tuple[str, ...]) -> Qwen2Tokenizer:
    """Give Qwen's tokenizer class with one token per byte, then `marks`."""
    vocab = {token: i for i, token in enumerate(["<|endoftext|>", *TINY_BYTES, *marks])}
    return Qwen2Tokenizer(vocab=vocab, merges=[], extra_special_tokens=list(marks))


def _load(cls: type[HuggingFaceBackbone], config: BackboneConfig) -> tuple[PreTrainedModel, Any, Any]:
    source = _source(config)
    with _explained(config, "config.json"):
        values, _ = PreTrainedConfig.get_config_dict(source)
    if values.get("model_type") != cls.model_type:
        raise ValueError(
            f"backbone={config.name} reads '{cls.model_type}' checkpoints, but backbone.checkpoint={source} holds a "
            f"'{values.get('model_type', 'nameless')}' model: change one of the two options."
        )
    cls.check_config(values)
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


def _source(config: BackboneConfig) -> str:
    """Give the folder or hub id; what can only be a path must exist."""
    if config.checkpoint is None:
        raise ValueError(
            f"backbone={config.name} needs weights: set backbone.checkpoint to a hub id or a local folder, "
            "or backbone.size=tiny for a small random model."
        )
    path = Path(config.checkpoint).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"{path / 'config.json'} does not exist: backbone.checkpoint must be a folder in Hugging Face format."
            )
        return str(path)
    if path.is_absolute() or config.checkpoint.startswith((".", "~")) or config.checkpoint.count("/") > 1:
        raise FileNotFoundError(
            f"backbone.checkpoint={config.checkpoint}: there is no folder {path.absolute()}. Give a folder with "
            "config.json, tokenizer and model.safetensors, or a hub id such as owner/model."
        )
    return config.checkpoint


@contextmanager
def _explained(config: BackboneConfig, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(missing_message(str(config.checkpoint), what, error)) from error
    except ValueError as error:
        if "instantiate the backend tokenizer" in str(error):  # how transformers says that there is none
            raise FileNotFoundError(missing_message(str(config.checkpoint), what, error)) from error
        if "scaled_dot_product_attention" not in str(error):
            raise
        raise ValueError(
            f"backbone.attn_implementation={config.attn_implementation} does not fit the decoder of "
            f"backbone.checkpoint={config.checkpoint} (e.g. Gemma 2): use backbone.attn_implementation=eager."
        ) from error


def missing_message(checkpoint: str, what: str, error: Exception) -> str:
    """Say what of a checkpoint could not be had, and what to do about it."""
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
        raise ValueError(
            f"backbone.checkpoint={config.checkpoint} lacks {len(lacking)} weights of its config, e.g. {lacking[0]}: "
            "it is damaged or mixes two models. Use another one, or backbone.random_init=true for random weights."
        )
    dropped = sorted(info.get("unexpected_keys", ()))
    logger.info("%s: %d tensors of the checkpoint are not used %s", config.name, len(dropped), dropped[:8])


def _check_attention(cls: type[HuggingFaceBackbone], config: BackboneConfig) -> None:
    choice, option = config.attn_implementation, f"backbone.attn_implementation={config.attn_implementation}"
    if choice not in cls.attentions:
        raise ValueError(
            f"{option} does not fit backbone={config.name}.{nearest(choice, cls.attentions)} "
            f"Options: {', '.join(cls.attentions)}."
        )
    if choice.startswith("flash") and not (torch.cuda.is_available() and importlib.util.find_spec("flash_attn")):
        lack = "the flash_attn package" if torch.cuda.is_available() else "a GPU"
        raise ValueError(f"{option} needs {lack}, which is not here: use backbone.attn_implementation=sdpa.")
