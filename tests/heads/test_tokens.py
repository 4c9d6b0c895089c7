"""Action tokens on hand-made numbers, on real vocabularies, and written with and without a cache."""

import pytest
import torch
from transformers import Qwen2Tokenizer

from robovlms.heads.base import HeadSizes
from robovlms.heads.schemas.tokens import TokensHeadConfig
from robovlms.heads.tokens import TokensHead, from_bins, to_bins
from robovlms.registry import BACKBONES


def test_bins_are_numpys_digitize_and_come_back_within_half_a_bin():
    actions = torch.tensor([-1.0, -0.999, 0.0, 0.001, 0.999, 1.0, -3.0, 3.0])
    assert to_bins(actions, 256).tolist() == [0, 0, 127, 127, 254, 255, 0, 255]
    back = from_bins(to_bins(actions.clamp(-1, 1), 256), 256)
    assert (back - actions.clamp(-1, 1)).abs().max() <= 1 / 255 + 1e-6
    torch.testing.assert_close(from_bins(torch.tensor([0, 254, 255]), 256), torch.tensor([-254, 254, 254]) / 255)


def test_the_words_are_the_last_ordinary_ones_of_the_real_qwen_vocabulary(shared_data):
    folder = shared_data / "tokenizers" / "qwen2.5"
    if not folder.is_dir():
        pytest.skip(f"no tokenizer at {folder}")
    backbone = BACKBONES.get("qwen2_5_vl").tiny()
    backbone.tokenizer = tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    ids = backbone.last_ids(256)
    assert tokenizer.vocab_size == 151643
    assert (ids[0], ids[-1]) == (151643 - 10 - 1, 151643 - 10 - 256)  # V0 - digitize, which is 1 to 256
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_the_words_start_as_the_vocabularys():
    backbone = BACKBONES.get("nano").tiny()
    sizes = {"feature_dim": 32, "action_dim": 2, "window_size": 1, "chunk_size": 1}
    head = TokensHead(TokensHeadConfig(name="tokens", num_bins=8), HeadSizes(**sizes, vocabulary=backbone.last_words))
    torch.testing.assert_close(head.embed.data, backbone.embedding.weight[2040:].flip(0))
    assert head.unembed.square().mean().item() == pytest.approx(1 / 32, rel=1e-4)


def test_what_is_regressed_cannot_be_written_token_by_token():
    with pytest.raises(ValueError, match=r"head\.discrete=false needs head\.parallel=true"):
        TokensHead(
            TokensHeadConfig(name="tokens", discrete=False),
            HeadSizes(feature_dim=8, action_dim=2, window_size=1, chunk_size=1),
        )


def test_a_vocabulary_too_small_for_the_bins_is_named():
    with pytest.raises(ValueError, match=r"too small for 2560 words"):
        BACKBONES.get("kosmos").tiny().last_ids(2560)
