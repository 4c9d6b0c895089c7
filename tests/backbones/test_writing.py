"""Every backbone that writes text: a reply is predicted from what stands before it, and from nothing else."""

import copy
import json

import pytest
import torch
from own_forward import OURS, load, own_inputs, pack, pictures, publish
from safetensors.torch import save_file

from robovlms.backbones.schemas.nano import NanoBackboneConfig
from robovlms.config.choices import ModelSize
from robovlms.config.policy import BackboneConfig
from robovlms.errors import UserError
from robovlms.registry import BACKBONES

WRITERS = [name for name in BACKBONES.names() if BACKBONES.get(name).tiny().text_head is not None]
PREFIX = ["paligemma", "paligemma2"]  # the question's tokens see each other, those of the reply only what is before
FAMILIES = [name for name in WRITERS if name not in (*OURS, "nano")]  # that transformers has a writing class of
BOUND = {"gemma4": 1.0, "paligemma2": 1.0}  # of the logits; the published 30 would hardly show on tiny weights


def tiny(name, **options):
    torch.manual_seed(0)
    backbone_class = BACKBONES.get(name)
    if name == "nano":
        config = NanoBackboneConfig(
            name=name, size=ModelSize.tiny, image_size=32, hidden_dim=32, num_layers=1, num_heads=2
        )
    else:
        config = BackboneConfig(
            name=name, size=ModelSize.tiny, attn_implementation=backbone_class.attentions[0], **options
        )
    backbone = backbone_class.from_config(config).eval()
    backbone.text_head.enable(config)
    return backbone


def read(backbone, questions, replies, view_mask=None):
    """Return what the replies' tokens are predicted from; a question is text, or ids."""
    rows = [text if isinstance(text, list) else backbone.tokenize.question_ids(text) for text in questions]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
    size = backbone.image_spec.size
    images = torch.randn(2, 1, 1, 3, size, size, generator=torch.Generator().manual_seed(1))[: len(rows)]
    return backbone.text_head.lm_hidden(backbone.encode(images), ids, mask, torch.tensor(replies), view_mask)


@pytest.mark.parametrize("name", WRITERS)
@torch.no_grad()
def test_a_word_is_predicted_from_all_before_it_and_nothing_behind(name):
    backbone = tiny(name)
    first, other = "What is it", "What is it, and where"
    reply = backbone.tokenize.reply_ids(first, " a cup on a red table")[:6]
    assert len(reply) == 6
    assert len(set(reply)) > 2
    features = read(backbone, [first], [reply])
    changed = [*reply[:3], *reply[:3][::-1]]
    again = read(backbone, [first, other], [changed, reply])
    assert torch.allclose(features[:, :4], again[:1, :4], atol=1e-5), "later words, padding and other rows"
    assert not torch.allclose(features[:, 5], again[:1, 5], atol=1e-3), "earlier words"
    logits = backbone.text_head.lm_logits(features[0])
    assert logits.shape[0] == 6
    assert logits.shape[1] > max(reply)
    assert logits.dtype is torch.float32
    if name not in PREFIX:
        longer = backbone.tokenize.question_ids(first) + reply[:2]
        assert torch.allclose(read(backbone, [longer], [reply[2:]]), features[:, 2:], atol=1e-5), "as text and as reply"


@pytest.mark.parametrize("name", ["flamingo", "qwen2_5_vl", "smolvlm"])
def test_question_and_reply_are_the_whole_text_where_a_template_ends_with_a_line(name):
    backbone = BACKBONES.get(name).tiny()
    ids = [
        *backbone.tokenize.question_ids("What?\nAnswer:\n"),
        *backbone.tokenize.reply_ids("What?\nAnswer:\n", "a cup"),
    ]
    assert ids == backbone.tokenize.question_ids("What?\nAnswer:\na cup")
    assert "What?\nAnswer:\na cup" in backbone.tokenizer.decode(ids)


def publish_as_published(name, folder):
    changes = {"tie_word_embeddings": BACKBONES.get(name).published_config().tie_word_embeddings}
    if name in BOUND:
        changes["final_logit_softcapping"] = BOUND[name]
    full = publish(name, folder, noise=0.1, **changes)
    backbone = load(name, folder)
    backbone.text_head.enable(BackboneConfig(name=name, checkpoint=str(folder)))
    return full, backbone


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_a_reply_equal_the_familys_own(name, tmp_path):
    full, backbone = publish_as_published(name, tmp_path)
    questions = ["what is it", "where", "name a colour that is not red"]
    texts = [backbone.tokenize.question_ids(text) for text in questions]
    replies = [backbone.tokenize.reply_ids(text, " a cup, green")[:8] for text in questions]
    view_mask = torch.tensor([[True, True], [True, False], [False, False]])
    images = pictures(backbone, 3, 2)

    width = max(map(len, texts))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in texts])
    mask = torch.arange(width) < torch.tensor([[len(row)] for row in texts])
    features = backbone.text_head.lm_hidden(
        backbone.encode(images[:, None]), ids, mask, torch.tensor(replies), view_mask
    )
    logits = backbone.text_head.lm_logits(features.flatten(0, 1)).unflatten(0, features.shape[:2])

    shown = [row[row_seen] for row, row_seen in zip(images, view_mask, strict=True)]
    batch = pack(name, backbone, shown, texts, [reply[:-1] for reply in replies])
    own = full(**own_inputs(name, backbone, batch)).logits
    first = batch.mask.sum(1) - len(replies[0])  # the last token of the question
    places = first[:, None] + torch.arange(len(replies[0]))
    own = own.gather(1, places[..., None].expand(-1, -1, own.shape[-1]))
    if (bound := BOUND.get(name)) and own.abs().max() > bound:
        own = bound * (own / bound).tanh()  # PaliGemma of transformers 5.17 leaves it to Gemma 2's own class
    assert own.std() > 0.5
    torch.testing.assert_close(logits, own, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["kosmos", "qwen2_5_vl"])
@torch.no_grad()
def test_text_alone_is_read_without_an_image(name):
    backbone = tiny(name)
    view_mask = torch.tensor([[True], [False]])
    both = read(backbone, ["one", "one"], [[5, 6], [5, 6]], view_mask)
    assert not torch.allclose(both[0], both[1], atol=1e-3)
    assert torch.allclose(both[:1], read(backbone, ["one"], [[5, 6]]), atol=1e-5)


def test_the_vocabulary_head_comes_from_the_checkpoint(tmp_path):
    backbone = tiny("llava")
    backbone.save_pretrained(tmp_path)
    config = BackboneConfig(name="llava", checkpoint=str(tmp_path))
    again = BACKBONES.get("llava").from_config(config)
    with pytest.raises(ValueError, match=r"no lm_head\.weight of"):
        again.text_head.enable(config)
    head = torch.randn_like(backbone.embedding.weight)
    weights = {f"model.{name}": value.contiguous() for name, value in backbone.model.state_dict().items()}
    save_file({**weights, "lm_head.weight": head}, tmp_path / "model.safetensors")
    again.text_head.enable(config)
    assert torch.equal(again.unembed.weight, head)
    (tmp_path / "model.safetensors").unlink()  # large ones come in several files
    save_file(weights, tmp_path / "1.safetensors")
    save_file({"language_model.lm_head.weight": head + 1}, tmp_path / "2.safetensors")
    files = dict.fromkeys(weights, "1.safetensors") | {"language_model.lm_head.weight": "2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    again.text_head.enable(config)
    assert torch.equal(again.unembed.weight, head + 1)


@pytest.mark.parametrize("name", ["kosmos", "paligemma"])
def test_a_head_of_its_own_where_the_config_ties_it_is_refused(name, tmp_path):
    backbone = tiny(name)
    assert backbone.ties_words
    backbone.save_pretrained(tmp_path)
    config = BackboneConfig(name=name, checkpoint=str(tmp_path))
    again = BACKBONES.get(name).from_config(config)
    again.text_head.enable(config)
    weights = {f"model.{key}": value.contiguous() for key, value in backbone.model.state_dict().items()}
    embedding = backbone.embedding.weight.detach()
    save_file({**weights, "lm_head.weight": embedding.clone()}, tmp_path / "model.safetensors")
    again.text_head.enable(config)
    save_file({**weights, "lm_head.weight": embedding + 1}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.weight of its own, but its config\.json ties it"):
        again.text_head.enable(config)
    assert again.unembed is None


def test_gemma_2_bounds_its_logits():
    backbone = tiny("paligemma2")
    backbone.model.config.get_text_config().final_logit_softcapping = 0.5
    assert backbone.text_head.lm_logits(100 * torch.randn(2, backbone.hidden_dim)).abs().max() <= 0.5


def test_a_tokenizer_without_an_end_token_is_refused():
    backbone = BACKBONES.get("llava").tiny()
    backbone.tokenizer = copy.deepcopy(backbone.tokenizer)  # tiny models share theirs
    backbone.tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"no eos_token: name it in the folder's tokenizer_config\.json"):
        backbone.text_head.enable(BackboneConfig(name="llava"))
