"""Action tokens on hand-made numbers, on real vocabularies, and written with and without a cache."""

import json

import pytest
import torch
from transformers import Qwen2Tokenizer, XLMRobertaTokenizer

from robovlms.backbones.families._kosmos_shared import TAGS
from robovlms.backbones.families.qwen_vl import SPECIAL_TOKENS
from robovlms.config.fields import check_fields
from robovlms.heads.base import HeadSizes
from robovlms.heads.schemas.tokens import TokensHeadConfig
from robovlms.heads.tokens import TokensHead, from_bins, to_bins
from robovlms.registry import BACKBONES


def shared_tokenizer(shared_data, name):
    folder = shared_data / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"no tokenizer at {folder}")
    return folder


def test_bins_are_numpys_digitize_and_come_back_within_half_a_bin():
    actions = torch.tensor([-1.0, -0.999, 0.0, 0.001, 0.999, 1.0, -3.0, 3.0])
    assert to_bins(actions, 256).tolist() == [0, 0, 127, 127, 254, 255, 0, 255]
    back = from_bins(to_bins(actions.clamp(-1, 1), 256), 256)
    assert (back - actions.clamp(-1, 1)).abs().max() <= 1 / 255 + 1e-6
    torch.testing.assert_close(from_bins(torch.tensor([0, 254, 255]), 256), torch.tensor([-254, 254, 254]) / 255)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "uform"])
def test_the_words_of_the_real_qwen_vocabulary_are_upstreams(shared_data, name):
    backbone = BACKBONES.get(name).tiny()
    backbone.tokenizer = tokenizer = Qwen2Tokenizer.from_pretrained(shared_tokenizer(shared_data, "qwen2.5"))
    assert tokenizer.vocab_size == 151643
    first = 151643 - (1 + 1 + 13) - 10  # special: end, padding, 13 others
    ids = backbone.last_ids(256)
    assert ids == [first - number for number in range(1, 257)]  # V0 - np.digitize, which is 1 to 256
    assert ids[0] == 151617
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_the_words_of_the_first_qwen_vl_lie_among_its_extra_tokens_as_upstreams_do(shared_data):
    folder = shared_tokenizer(shared_data, "qwen2.5")
    lines = (folder / "merges.txt").read_text().splitlines()
    merges = [tuple(line.split(" ")) for line in lines if not line.startswith("#version")]
    vocab = json.loads((folder / "vocab.json").read_text())
    backbone = BACKBONES.get("qwen_vl").tiny()
    backbone.tokenizer = tokenizer = Qwen2Tokenizer(vocab, merges, extra_special_tokens=SPECIAL_TOKENS[1:])
    assert len(tokenizer) == 151643 + 3 + 205 + 9  # what the published tokenizer calls its vocab_size
    ids = backbone.last_ids(256)
    assert (ids[0], ids[-1]) == (151860 - 1 - 10 - 1, 151860 - 1 - 10 - 256)
    assert tokenizer.convert_ids_to_tokens(ids[0]) == "<|extra_202|>"


def test_the_words_of_the_real_kosmos_vocabulary_are_upstreams(shared_data):
    backbone = BACKBONES.get("kosmos").tiny()
    tags = [token for token in backbone.tokenizer.added_tokens_decoder.values() if token.content in TAGS]
    backbone.tokenizer = tokenizer = XLMRobertaTokenizer.from_pretrained(shared_tokenizer(shared_data, "kosmos2"))
    tokenizer.add_tokens(tags)
    assert tokenizer.vocab_size == 64002
    assert backbone.last_ids(256)[0] == 64002 - 7 - 10 - 1  # bos, eos, unk, sep, pad, cls, mask
    assert not set(backbone.last_ids(256)) & set(tokenizer.added_tokens_decoder)


@pytest.mark.parametrize(
    ("name", "special"),
    [
        ("flamingo", 4 + 2),  # bos, eos, unk, pad; <|endofchunk|>, <image>
        ("llava", 3 + 1 + 1),  # bos, eos, unk; <image>; the padding that upstream adds
        ("moondream", 3 + 1),  # bos, eos, unk; the padding that upstream adds
        ("paligemma", 4 + 1),  # bos, eos, unk, pad; <image>
    ],
)
def test_special_tokens_are_counted_as_upstreams_transformers_names_them(name, special):
    backbone = BACKBONES.get(name).tiny()
    assert backbone.last_ids(1) == [backbone.tokenizer.vocab_size - special - 10 - 1]


def test_the_words_start_as_the_vocabularys():
    backbone = BACKBONES.get("nano").tiny()
    sizes = {"feature_dim": 32, "action_dim": 2, "binary": (1,), "window_size": 1, "chunk_size": 1}
    head = TokensHead(TokensHeadConfig(name="tokens", num_bins=8), HeadSizes(**sizes, vocabulary=backbone.last_words))
    torch.testing.assert_close(head.embed.data, backbone.embedding.weight[2040:].flip(0))
    assert head.unembed.square().mean().item() == pytest.approx(1 / 32, rel=1e-4)


def test_what_is_regressed_cannot_be_written_token_by_token():
    with pytest.raises(ValueError, match=r"head\.discrete=false needs head\.parallel=true"):
        check_fields(TokensHeadConfig(name="tokens", discrete=False), "head")


def test_a_vocabulary_too_small_for_the_bins_is_named():
    with pytest.raises(ValueError, match=r"too small for 2560 words"):
        BACKBONES.get("kosmos").tiny().last_ids(2560)
