"""UForm-Gen of both generations against a plain computation over its authors' tensors."""

import json

import pytest
import torch
import torch.nn.functional as F
from PIL.Image import Resampling
from safetensors.torch import save_file
from transformers import AutoModel, LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model

from robovlms.backbones.families.llava import tiny_tokenizer
from robovlms.backbones.families.uform import UForm, convert
from robovlms.backbones.tiny import TINY_TEXT
from robovlms.config.policy import BackboneConfig

V, D, LATENTS, HEADS, WIDE = 32, 64, 4, 2, 48


def decoder_of(generation):
    """The decoder's config, random weights under its own names, and the tokenizer."""
    family, sizes = (LlamaConfig, LlamaModel), {"num_key_value_heads": 2}
    tokenizer = tiny_tokenizer() if generation == 1 else UForm.tiny().tokenizer
    if generation == 2:
        family = (Qwen2Config, Qwen2Model)
    config = family[0](**TINY_TEXT, **sizes, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    return config, family[1](config).eval(), tokenizer


def original_weights(generation):
    """Random weights under the authors' names."""
    generator = torch.Generator().manual_seed(0)
    width = D if generation == 1 else V  # of the pooler
    shapes = {
        "image_encoder.patch_embed.weight": (V, 3, 14, 14), "image_encoder.patch_embed.bias": (V,),
        "image_encoder.pos_embed": (1, 16 if generation == 1 else 4, V), "image_encoder.cls_token": (1, 1, V),
        "image_encoder.embedding_projection.weight": (8, V), "image_pooler.image_latents": (1, LATENTS, width),
        "image_pooler.projection.weight": (D, V), "image_pooler.projection.bias": (D,),
        "image_pooler.pooler.linear1.weight": (WIDE, width), "image_pooler.pooler.linear1.bias": (WIDE,),
        "image_pooler.pooler.linear2.weight": (width, WIDE), "image_pooler.pooler.linear2.bias": (width,),
    }  # fmt: skip
    norms = {"image_encoder.norm": V, **{f"image_pooler.pooler.norm{i}": width for i in (1, 2, 3)}}
    for name in ("self_attn", "multihead_attn"):
        part = f"image_pooler.pooler.{name}"
        shapes |= {
            f"{part}.in_proj_weight": (3 * width, width), f"{part}.in_proj_bias": (3 * width,),
            f"{part}.out_proj.weight": (width, width), f"{part}.out_proj.bias": (width,),
        }  # fmt: skip
    for i in range(2):
        block = f"image_encoder.blocks.{i}"
        for name in ("query", "key", "value", "out"):
            shapes |= {f"{block}.attn.{name}.weight": (V, V), f"{block}.attn.{name}.bias": (V,)}
        shapes |= {
            f"{block}.mlp.hidden_layer.weight": (4 * V, V), f"{block}.mlp.hidden_layer.bias": (4 * V,),
            f"{block}.mlp.output_layer.weight": (V, 4 * V), f"{block}.mlp.output_layer.bias": (V,),
            f"{block}.ls1.weight": (V,), f"{block}.ls2.weight": (V,),
        }  # fmt: skip
        norms |= {f"{block}.norm1": V, f"{block}.norm2": V}
    weights = {key: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for key, shape in shapes.items()}
    for key, size in norms.items():
        weights[f"{key}.weight"] = 1 + 0.1 * torch.randn(size, generator=generator)
        weights[f"{key}.bias"] = 0.1 * torch.randn(size, generator=generator)
    _, decoder, _ = decoder_of(generation)
    weights |= {f"text_decoder.model.{key}": value for key, value in decoder.state_dict().items()}
    return weights | {"text_decoder.lm_head.weight": decoder.embed_tokens.weight.detach().clone()}


def latents_of(weights, images, generation):
    """The authors' vision tower and pooler."""

    def linear(x, key):
        return F.linear(x, weights[f"{key}.weight"], weights[f"{key}.bias"])

    def norm(x, key, eps):
        return F.layer_norm(x, x.shape[-1:], weights[f"{key}.weight"], weights[f"{key}.bias"], eps)

    def attend(q, k, v):
        q, k, v = (each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in (q, k, v))
        return ((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)

    encoder, pooler = "image_encoder", "image_pooler.pooler"
    x = F.conv2d(images, weights[f"{encoder}.patch_embed.weight"], weights[f"{encoder}.patch_embed.bias"], stride=14)
    positions = weights[f"{encoder}.pos_embed"]
    if generation == 2:  # of images half as large
        square = positions.unflatten(1, (2, 2)).permute(0, 3, 1, 2)
        positions = F.interpolate(square, scale_factor=(4.1 / 2, 4.1 / 2), mode="bicubic").flatten(2).transpose(1, 2)
    x = x.flatten(2).transpose(1, 2) + positions
    x = torch.cat([weights[f"{encoder}.cls_token"].expand(len(x), -1, -1), x], dim=1)
    for i in range(2):
        block = f"{encoder}.blocks.{i}"
        inner = norm(x, f"{block}.norm1", 1e-6)
        joint = attend(*(linear(inner, f"{block}.attn.{name}") for name in ("query", "key", "value")))
        x = x + linear(joint, f"{block}.attn.out") * weights[f"{block}.ls1.weight"]
        hidden = F.gelu(linear(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.hidden_layer"))
        x = x + linear(hidden, f"{block}.mlp.output_layer") * weights[f"{block}.ls2.weight"]
    x = norm(x, f"{encoder}.norm", 1e-6)
    if generation == 1:
        x = linear(x, "image_pooler.projection")

    def look(y, at, name):
        kernels = weights[f"{pooler}.{name}.in_proj_weight"].chunk(3)
        biases = weights[f"{pooler}.{name}.in_proj_bias"].chunk(3)
        return linear(attend(*map(F.linear, (y, at, at), kernels, biases)), f"{pooler}.{name}.out_proj")

    y = weights["image_pooler.image_latents"].expand(len(x), -1, -1)
    inner = norm(y, f"{pooler}.norm1", 1e-5)
    y = y + look(inner, inner, "self_attn")
    y = y + look(norm(y, f"{pooler}.norm2", 1e-5), x, "multihead_attn")
    y = y + linear(F.silu(linear(norm(y, f"{pooler}.norm3", 1e-5), f"{pooler}.linear1")), f"{pooler}.linear2")
    return y if generation == 1 else linear(y, "image_pooler.projection")


@pytest.fixture(params=[1, 2])
def original(request, tmp_path):
    """A folder as the authors published it, of tiny sizes."""
    folder = tmp_path / "original"
    decoder_of(request.param)[2].save_pretrained(folder)
    counts = {"image_pooler_num_latents": LATENTS} if request.param == 1 else {"num_image_latents": LATENTS}
    values = {
        "model_type": "vlm", "image_size": 56, "image_encoder_hidden_size": V, "image_encoder_patch_size": 14,
        "image_encoder_num_layers": 2, "image_encoder_num_heads": HEADS, "image_pooler_num_attn_heads": HEADS,
        "image_pooler_intermediate_size": WIDE, **counts,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))
    save_file(
        {key: value.contiguous() for key, value in original_weights(request.param).items()}, folder / "a.safetensors"
    )
    return request.param, folder


@torch.no_grad()
def test_features_are_those_of_the_authors_own_tensors(original):
    generation, folder = original
    config, decoder, _ = decoder_of(generation)
    backbone = UForm.from_original(folder, config.to_dict())
    assert backbone.image_spec.interpolation is (Resampling.BICUBIC if generation == 1 else Resampling.BILINEAR)
    weights = original_weights(generation)
    generator = torch.Generator().manual_seed(1)
    images, query = torch.randn(2, 3, 56, 56, generator=generator), torch.randn(2, 1, D, generator=generator)
    text = torch.tensor(backbone.tokenize(["push it", "lift it"]))
    embedded, head = decoder.embed_tokens(text), int(generation == 1)
    sequence = [embedded[:, :head], latents_of(weights, images, generation), embedded[:, head:], query]
    expected = decoder(inputs_embeds=torch.cat(sequence, dim=1)).last_hidden_state[:, -1:]
    ones = torch.ones_like(text, dtype=torch.bool)
    features = backbone(images[:, None, None], text, ones, query[:, None])[:, 0]
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)

    backbone.save_pretrained(folder.parent / "ours")
    again = UForm.from_config(BackboneConfig(name="uform", checkpoint=str(folder.parent / "ours"))).eval()
    assert again.tokenize(["push it"]) == backbone.tokenize(["push it"])
    torch.testing.assert_close(again(images[:, None, None], text, ones, query[:, None])[:, 0], features)


def test_weights_without_a_place_and_missing_ones_are_listed(original):
    generation, folder = original
    weights = original_weights(generation)
    with pytest.raises(ValueError, match=r"have no place in our model: image_encoder\.reg_token"):
        convert({**weights, "image_encoder.reg_token": torch.ones(1)}, UForm.published_config())
    del weights["image_encoder.norm.bias"]
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / "a.safetensors")
    with pytest.raises(ValueError, match=r"1 are missing: vision_tower\.norm\.bias"):
        UForm.from_original(folder, decoder_of(generation)[0].to_dict())
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        UForm.from_original(folder)


def test_the_published_sizes_are_a_vit_h_and_qwen():
    with torch.device("meta"):
        model = AutoModel.from_config(UForm.published_config())
    count = lambda module: sum(p.numel() for p in module.parameters()) / 1e9  # noqa: E731
    assert count(model.vision_tower) == pytest.approx(0.631, rel=1e-3)  # a ViT-H/14 without its projection
    assert count(model.language_model) == pytest.approx(0.464, rel=1e-3)  # Qwen1.5-0.5B
