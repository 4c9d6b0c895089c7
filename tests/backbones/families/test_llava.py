"""LLaVA-MPT against a plain computation over its authors' tensors."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, GPTNeoXTokenizer, MptConfig, MptModel

from robovlms.backbones.families.llava import Llava
from robovlms.backbones.tiny import TINY_BYTES, TINY_VISION
from robovlms.config.policy import BackboneConfig

V, D = 32, 64


@pytest.fixture
def original(tmp_path):
    """A folder as the authors published it, with CLIP's beside, of tiny sizes; and its weights and decoder."""
    folder = tmp_path / "original"
    torch.manual_seed(0)
    tokenizer = GPTNeoXTokenizer(vocab={token: i for i, token in enumerate(["<|endoftext|>", *TINY_BYTES])}, merges=[])
    tokenizer.save_pretrained(folder)
    sizes = {"d_model": D, "n_heads": 4, "n_layers": 2, "vocab_size": len(tokenizer) + 3}
    decoder = MptModel(MptConfig(**sizes)).eval()
    weights = {f"transformer.{key}": value.clone() for key, value in decoder.state_dict().items()}
    weights |= {"transformer.mm_projector.weight": torch.randn(D, V) / V**0.5}
    weights |= {"transformer.mm_projector.bias": torch.randn(D)}
    save_file(weights, folder / "model.safetensors")
    values = {"model_type": "llava_mpt", "mm_vision_tower": "openai/clip", "mm_vision_select_layer": -2, **sizes}
    (folder / "config.json").write_text(json.dumps(values))
    other = {"hidden_size": V, "intermediate_size": 2 * V, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPConfig(text_config={**other, "vocab_size": 99}, vision_config=TINY_VISION, projection_dim=8)
    CLIPModel(clip).save_pretrained(folder / "clip")
    crop = {"height": 56, "width": 56}
    CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=crop).save_pretrained(folder / "clip")
    return folder, weights, decoder


@torch.no_grad()
def test_features_are_those_of_the_authors_own_tensors(original):
    folder, weights, decoder = original
    backbone = Llava.from_original(folder)
    generator = torch.Generator().manual_seed(1)
    images, query = torch.randn(2, 2, 3, 56, 56, generator=generator), torch.randn(2, 1, D, generator=generator)
    text = torch.tensor(backbone.tokenize(["push it", "lift it"]))
    assert text.shape == (2, 7)  # one token per byte, no start token
    clip = CLIPModel.from_pretrained(folder / "clip").eval()
    patches = clip.vision_model(images.flatten(0, 1), output_hidden_states=True).hidden_states[-2][:, 1:]
    projector = "transformer.mm_projector"
    views = F.linear(patches, weights[f"{projector}.weight"], weights[f"{projector}.bias"]).unflatten(0, (2, 2))
    sequence = torch.cat([views.flatten(1, 2), decoder.wte(text), query], dim=1)
    expected = decoder(inputs_embeds=sequence, use_cache=False).last_hidden_state[:, -1:]
    ones = torch.ones_like(text, dtype=torch.bool)
    features = backbone(images[:, None], text, ones, query[:, None])[:, 0]
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)

    backbone.save_pretrained(folder.parent / "ours")
    config = BackboneConfig(name="llava", checkpoint=str(folder.parent / "ours"), attn_implementation="eager")
    again = Llava.from_config(config).eval()
    assert again.tokenize(["push it"]) == backbone.tokenize(["push it"])
    torch.testing.assert_close(again(images[:, None], text, ones, query[:, None])[:, 0], features)
    config.attn_implementation = "sdpa"
    with pytest.raises(ValueError, match=r"use backbone\.attn_implementation=eager"):
        Llava.from_config(config)


def test_weights_without_a_place_and_missing_ones_are_listed(original):
    folder, weights, _ = original
    save_file({**weights, "transformer.im_start": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 weights of the original have no place in our model: transformer.im_start"):
        Llava.from_original(folder)
    del weights["transformer.mm_projector.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 are missing: multi_modal_projector.linear_1.bias"):
        Llava.from_original(folder)


def test_what_is_no_llava_mpt_is_named(original):
    folder, _, _ = original
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"model_type": "llava_llama"}))
    with pytest.raises(ValueError, match=r"'llava_llama' model: only LLaVA-MPT is converted, .*llava-hf"):
        Llava.from_original(folder)
    (folder / "clip" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"clip/config.json does not exist: put .*mm_vision_tower"):
        Llava.from_original(folder)
