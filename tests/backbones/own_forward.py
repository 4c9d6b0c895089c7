"""What a Hugging Face family's own class reads, made by hand of ids and pictures: what an adapter is compared with."""

from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForImageTextToText

from robovlms.config.policy import BackboneConfig
from robovlms.registry import BACKBONES

OURS = [
    "flamingo",
    "flamingo_upstream",
    "moondream",
    "qwen_vl",
    "uform",
]  # families that transformers lacks, made of its blocks


def publish(name, folder, noise=0.0, **changes):
    """Write a checkpoint folder as publishers make it, with the vocabulary head if the family is not ours; return
    its model.
    """
    tiny = BACKBONES.get(name).tiny()
    for option, value in changes.items():
        owner = tiny.model.config if option == "tie_word_embeddings" else tiny.model.config.get_text_config()
        setattr(owner, option, value)
    tiny.save_pretrained(folder, weights=False)
    torch.manual_seed(3)
    auto = AutoModel if name in OURS else AutoModelForImageTextToText
    full = auto.from_config(tiny.model.config, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in full.parameters() if noise else ():  # new norms multiply by one, and new logits are small
            weight += noise * torch.randn_like(weight)
    full.save_pretrained(folder)
    return full


def load(name, folder, **options):
    options.setdefault("attn_implementation", BACKBONES.get(name).attentions[0])  # as in its YAML
    return BACKBONES.get(name).from_config(BackboneConfig(name=name, checkpoint=str(folder), **options)).eval()


def pictures(backbone, *shape):
    """Return images that are made of whole bytes."""
    size, mean, std = backbone.image_spec.size, *_statistics(backbone)
    return (torch.randint(256, (*shape, 3, size, size)) / 255 - mean) / std


def _statistics(backbone):
    spec = backbone.image_spec
    return (torch.tensor(each)[:, None, None] for each in (spec.mean, spec.std))


class Batch(NamedTuple):
    """Rows of ids, padded on the right; an image is its marks with placeholders in between."""

    ids: torch.Tensor
    mask: torch.Tensor
    is_image: torch.Tensor  # placeholders
    is_reply: torch.Tensor  # what stands behind the text
    images: list  # of every row


def pack(name, backbone, images, texts, replies):
    """Put every row's images (a tensor each) behind the head of its text, and its reply behind the text."""
    config, closing = backbone.model.config, backbone.num_closing_tokens
    head = backbone.num_head_tokens - closing
    slot, pad = (4, config.text_config.pad_token_id) if "kosmos" in name else (config.image_token_id, 0)
    size, before = backbone.embed_images(torch.cat(images)[:1]).shape[1], backbone.num_marks[0]
    marks = backbone.mark_ids.tolist()
    image = marks[:before] + [slot] * (size - len(marks)) + marks[before:]
    shown = [int(token == slot) for token in image]
    rows, kinds = [], []
    for row_images, whole, row_reply in zip(images, texts, replies, strict=True):
        text = whole[closing:]  # no frame is before
        rows.append(text[:head] + len(row_images) * image + text[head:] + row_reply)
        kinds.append([0] * head + len(row_images) * shown + [0] * (len(text) - head) + [2] * len(row_reply))
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)
    kind = pad_sequence([torch.tensor(row) for row in kinds], batch_first=True, padding_value=-1)
    return Batch(ids, kind >= 0, kind == 1, kind == 2, images)


def own_inputs(name, backbone, batch):
    """Return the arguments of the family's own forward."""
    options = {"input_ids": batch.ids, "attention_mask": batch.mask.long(), "pixel_values": torch.cat(batch.images)}
    return options | OPTIONS.get(name, lambda *_: {})(backbone, batch)


def _kosmos(backbone, batch):
    return {"image_embeds_position_mask": batch.is_image}


def _paligemma(backbone, batch):
    return {"token_type_ids": batch.is_reply.long()}


def _causal(backbone, batch):
    return {"token_type_ids": batch.mask.long()}


def _gemma3(backbone, batch):
    return {"token_type_ids": batch.is_image.long()}


def _gemma4(backbone, batch):
    patches, places = backbone.cut(torch.cat(batch.images))
    return {"pixel_values": patches, "image_position_ids": places, "mm_token_type_ids": batch.is_image.long()}


def _idefics3(backbone, batch):
    """A row may have several images, or tiles; those that it lacks are black."""
    return {"pixel_values": pad_sequence(batch.images, batch_first=True)}


def _llava_onevision(backbone, batch):
    images = torch.cat(batch.images)
    return {
        "pixel_values": images[:, None],
        "image_sizes": torch.tensor([images.shape[-2:]] * len(images)),
        "batch_num_images": torch.tensor([len(images)]),  # images of several are not tiled
    }


def _patches(backbone, batch):
    """Patches and their sizes, as the family's image processor cuts them."""
    mean, std = _statistics(backbone)
    pixels = ((torch.cat(batch.images) * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return dict(backbone.image_processor(list(pixels), do_resize=False, return_tensors="pt"))


def _qwen(backbone, batch):
    return {**_patches(backbone, batch), "mm_token_type_ids": batch.is_image.long()}


OPTIONS = {
    "kosmos": _kosmos, "kosmos_upstream": _kosmos, "paligemma_upstream": _causal,
    "paligemma": _paligemma, "paligemma2": _paligemma, "gemma3": _gemma3, "gemma4": _gemma4,
    "idefics3": _idefics3, "smolvlm": _idefics3, "llava_onevision": _llava_onevision, "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen, "qwen3_5": _qwen, "lfm2_vl": _patches,
}  # fmt: skip
