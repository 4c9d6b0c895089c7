"""Logits of a reply equal those of the family's own class, which reads ids and pixels."""

import pytest
import torch
from own_forward import load, own_inputs, pack, pictures, publish

from robovlms.config import BackboneConfig
from robovlms.registry import BACKBONES

FAMILIES = [
    "gemma3", "gemma4", "idefics3", "internvl", "kosmos", "llava", "llava_onevision", "paligemma", "paligemma2",
    "qwen2_5_vl", "qwen3_5", "qwen3_vl", "smolvlm",
]  # fmt: skip
BOUND = {"gemma4": 3.0, "paligemma2": 3.0}  # of the logits; the published 30 would hardly show on tiny weights


def publish_as_published(name, folder):
    changes = {"tie_word_embeddings": BACKBONES.get(name).published_config().tie_word_embeddings}
    if name in BOUND:
        changes["final_logit_softcapping"] = BOUND[name]
    full = publish(name, folder, noise=0.1, **changes)
    backbone = load(name, folder)
    backbone.prepare_writing(BackboneConfig(name=name, checkpoint=str(folder)))
    return full, backbone


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_a_reply_equal_the_familys_own(name, tmp_path):
    full, backbone = publish_as_published(name, tmp_path)
    questions = ["what is it", "where", "name a colour that is not red"]
    texts = [backbone.question_ids(text) for text in questions]
    replies = [backbone.reply_ids(text, " a cup, green")[:8] for text in questions]
    seen = torch.tensor([[True, True], [True, False], [False, False]])
    images = pictures(backbone, 3, 2)

    width = max(map(len, texts))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in texts])
    mask = torch.arange(width) < torch.tensor([[len(row)] for row in texts])
    features = backbone.read_words(backbone.encode(images[:, None]), ids, mask, torch.tensor(replies), seen)
    logits = backbone.predict_words(features.flatten(0, 1)).unflatten(0, features.shape[:2])

    shown = [row[row_seen] for row, row_seen in zip(images, seen, strict=True)]
    batch = pack(name, backbone, shown, texts, [reply[:-1] for reply in replies])
    own = full(**own_inputs(name, backbone, batch)).logits
    first = batch.mask.sum(1) - len(replies[0])  # the last token of the question
    places = first[:, None] + torch.arange(len(replies[0]))
    own = own.gather(1, places[..., None].expand(-1, -1, own.shape[-1]))
    assert own.std() > 0.5
    torch.testing.assert_close(logits, own, rtol=0, atol=1e-4)
