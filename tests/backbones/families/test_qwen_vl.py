"""Qwen-VL against a plain computation over its authors' tensors, and its vocabulary against the one of Qwen2."""

import base64
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModel, Qwen2Tokenizer

from robovlms.backbones.families.qwen_vl import (
    BYTE_CHARACTERS,
    SPECIAL_TOKENS,
    QwenVL,
    convert,
    interpolate_square,
    read_tokenizer,
    square_sinusoids,
)
from robovlms.config.policy import BackboneConfig

V, D, VOCAB, LAYERS = 32, 64, 256 + len(SPECIAL_TOKENS), 2
VISION_HEADS, TEXT_HEADS = 2, 4
BYTES = [bytes([byte]) for byte in range(256)]


def sizes():
    """Those of QwenVL1.tiny() with the original's special tokens."""
    config = QwenVL.tiny().model.config.to_dict()
    config["text_config"]["vocab_size"] = VOCAB
    return type(QwenVL.tiny().model.config).from_dict(config)


def original_weights():
    """Random weights under the authors' names."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "wte.weight": (VOCAB, D), "visual.conv1.weight": (V, 3, 14, 14), "visual.positional_embedding": (4, V),
        "visual.attn_pool.query": (4, D), "visual.attn_pool.kv_proj.weight": (D, V), "visual.proj": (D, D),
        "visual.attn_pool.attn.in_proj_weight": (3 * D, D), "visual.attn_pool.attn.in_proj_bias": (3 * D,),
        "visual.attn_pool.attn.out_proj.weight": (D, D), "visual.attn_pool.attn.out_proj.bias": (D,),
    }  # fmt: skip
    norms = {"visual.ln_pre": V, "visual.ln_post": D, "visual.attn_pool.ln_q": D, "visual.attn_pool.ln_kv": D}
    for i in range(LAYERS):
        block, layer = f"visual.transformer.resblocks.{i}", f"h.{i}"
        shapes |= {
            f"{block}.attn.in_proj.weight": (3 * V, V), f"{block}.attn.in_proj.bias": (3 * V,),
            f"{block}.attn.out_proj.weight": (V, V), f"{block}.attn.out_proj.bias": (V,),
            f"{block}.mlp.c_fc.weight": (64, V), f"{block}.mlp.c_fc.bias": (64,),
            f"{block}.mlp.c_proj.weight": (V, 64), f"{block}.mlp.c_proj.bias": (V,),
            f"{layer}.attn.c_attn.weight": (3 * D, D), f"{layer}.attn.c_attn.bias": (3 * D,),
            f"{layer}.attn.c_proj.weight": (D, D), f"{layer}.mlp.c_proj.weight": (D, 128),
            f"{layer}.mlp.w1.weight": (128, D), f"{layer}.mlp.w2.weight": (128, D),
        }  # fmt: skip
        norms |= {f"{block}.ln_1": V, f"{block}.ln_2": V}
    weights = {key: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for key, shape in shapes.items()}
    for key, width in norms.items():
        weights[f"{key}.weight"] = 1 + 0.1 * torch.randn(width, generator=generator)
        weights[f"{key}.bias"] = 0.1 * torch.randn(width, generator=generator)
    for key in ("ln_f", *(f"h.{i}.ln_{k}" for i in range(LAYERS) for k in (1, 2))):
        weights[f"{key}.weight"] = 1 + 0.1 * torch.randn(D, generator=generator)
    weights["visual.attn_pool.pos_embed"] = square_sinusoids(D, 2)
    return {f"transformer.{key}": value for key, value in weights.items()} | {"lm_head.weight": torch.ones(VOCAB, D)}


def attend(q, k, v, is_causal=False):
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if is_causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def see(weights, images):
    """The authors' vision tower and resampler."""

    def w(key):
        return weights[f"transformer.visual.{key}"]

    def norm(x, key):
        return F.layer_norm(x, x.shape[-1:], w(f"{key}.weight"), w(f"{key}.bias"), 1e-6)

    def linear(x, key):
        return F.linear(x, w(f"{key}.weight"), w(f"{key}.bias"))

    def stretch(table):
        square = table.reshape(1, 2, 2, -1).permute(0, 3, 1, 2)
        return F.interpolate(square, size=(4, 4), mode="bicubic", align_corners=False).flatten(2)[0].T

    x = F.conv2d(images, w("conv1.weight"), stride=14).flatten(2).transpose(1, 2)
    x = norm(x + stretch(w("positional_embedding")), "ln_pre")
    for i in range(LAYERS):
        block = f"transformer.resblocks.{i}"
        joint = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.in_proj")
        q, k, v = joint.unflatten(-1, (VISION_HEADS, -1)).transpose(1, 2).chunk(3, dim=-1)  # q, k, v of each head
        x = x + linear(attend(q, k, v), f"{block}.attn.out_proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")), f"{block}.mlp.c_proj")
    x = norm(F.linear(x, w("attn_pool.kv_proj.weight")), "attn_pool.ln_kv")
    latents = (norm(w("attn_pool.query"), "attn_pool.ln_q") + w("attn_pool.pos_embed")).expand(len(x), -1, -1)
    inputs = (latents, x + stretch(w("attn_pool.pos_embed")), x)
    kernels, biases = w("attn_pool.attn.in_proj_weight").chunk(3), w("attn_pool.attn.in_proj_bias").chunk(3)
    q, k, v = (F.linear(*each)[:, None] for each in zip(inputs, kernels, biases, strict=True))
    return norm(linear(attend(q, k, v), "attn_pool.attn.out_proj"), "ln_post") @ w("proj")


def decode(weights, x):
    """The authors' decoder."""

    def w(key):
        return weights[f"transformer.{key}"]

    def norm(x, key):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * w(f"{key}.weight")

    angles = torch.arange(x.shape[1])[:, None] / 10000 ** (torch.arange(0, 16, 2) / 16)

    def rotate(x):
        left, right = x.chunk(2, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)

    for i in range(LAYERS):
        joint = F.linear(norm(x, f"h.{i}.ln_1"), w(f"h.{i}.attn.c_attn.weight"), w(f"h.{i}.attn.c_attn.bias"))
        q, k, v = (part.unflatten(-1, (TEXT_HEADS, -1)).transpose(1, 2) for part in joint.chunk(3, dim=-1))
        x = x + attend(rotate(q), rotate(k), v, is_causal=True) @ w(f"h.{i}.attn.c_proj.weight").T
        inner = norm(x, f"h.{i}.ln_2")
        gated = inner @ w(f"h.{i}.mlp.w1.weight").T * F.silu(inner @ w(f"h.{i}.mlp.w2.weight").T)
        x = x + gated @ w(f"h.{i}.mlp.c_proj.weight").T
    return norm(x, "ln_f")


@pytest.fixture
def original(tmp_path):
    """A folder as the authors published it, of tiny sizes: its vocabulary is the 256 bytes."""
    folder = tmp_path / "original"
    folder.mkdir()
    lines = [f"{base64.b64encode(byte).decode()} {rank}" for rank, byte in enumerate(BYTES)]
    (folder / "qwen.tiktoken").write_text("\n".join(lines) + "\n")
    save_file({key: value.contiguous() for key, value in original_weights().items()}, folder / "model.safetensors")
    return folder


@torch.no_grad()
def test_features_are_those_of_the_authors_own_tensors(original):
    backbone = QwenVL.from_original(original, sizes())
    weights = original_weights()
    generator = torch.Generator().manual_seed(1)
    images, query = torch.randn(2, 3, 56, 56, generator=generator), torch.randn(2, 1, D, generator=generator)
    assert backbone.tokenize(["push"]) == [list(b"push")]
    text = torch.tensor(backbone.tokenize(["push it", "lift it"]))
    marks = weights["transformer.wte.weight"][256 + torch.tensor([151857, 151858]) - 151643]
    before, behind = (mark.expand(2, 1, D) for mark in marks)
    embedded = weights["transformer.wte.weight"][text]
    expected = decode(weights, torch.cat([before, see(weights, images), behind, embedded, query], dim=1))[:, -1:]
    ones = torch.ones_like(text, dtype=torch.bool)
    features = backbone(images[:, None, None], text, ones, query[:, None])[:, 0]
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)

    backbone.save_pretrained(original.parent / "ours")
    again = QwenVL.from_config(BackboneConfig(name="qwen_vl", checkpoint=str(original.parent / "ours"))).eval()
    assert again.tokenize(["push it"]) == backbone.tokenize(["push it"])
    torch.testing.assert_close(again(images[:, None, None], text, ones, query[:, None])[:, 0], features)


def test_weights_without_a_place_and_missing_ones_are_listed(original):
    weights = original_weights()
    with pytest.raises(ValueError, match=r"have no place in our model: transformer\.h\.0\.gate"):
        convert({**weights, "transformer.h.0.gate": torch.ones(1)}, sizes())
    del weights["transformer.ln_f.weight"]
    save_file({key: value.contiguous() for key, value in weights.items()}, original / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 are missing: language_model\.norm\.weight"):
        QwenVL.from_original(original, sizes())
    (original / "qwen.tiktoken").unlink()
    with pytest.raises(FileNotFoundError, match=r"qwen\.tiktoken does not exist"):
        read_tokenizer(original / "qwen.tiktoken")


@pytest.mark.slow
def test_the_vocabulary_file_becomes_the_real_merges_and_the_published_ids(shared_data, tmp_path):
    folder = shared_data / "tokenizers" / "qwen2.5"
    if not folder.is_dir():
        pytest.skip(f"no tokenizer at {folder}")
    vocab = json.loads((folder / "vocab.json").read_text())
    byte_of = {character: byte for byte, character in BYTE_CHARACTERS.items()}
    lines = [f"{base64.b64encode(bytes(byte_of[c] for c in token)).decode()} {rank}" for token, rank in vocab.items()]
    (tmp_path / "qwen.tiktoken").write_text("\n".join(lines) + "\n")
    tokenizer = read_tokenizer(tmp_path / "qwen.tiktoken")
    published = json.loads((folder.parent / "EXPECTED.json").read_text())["qwen2.5"]
    real = Qwen2Tokenizer.from_pretrained(folder)
    for text in (published["text"], "pick up the red block!", "Größe 100 ℃, 打开抽屉"):
        assert tokenizer(text)["input_ids"] == real(text)["input_ids"]
    assert tokenizer(published["text"])["input_ids"] == published["ids"]
    marks = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<img>", "</img>", "<imgpad>"])
    assert marks == [151643, 151857, 151858, 151859]
    assert len(tokenizer) == 151860


def test_positions_of_an_equal_square_stay_and_name_the_column_first():
    table = torch.arange(8.0).view(4, 2)
    assert interpolate_square(table, 4) is table
    sines = square_sinusoids(8, 2)[1]  # row 0, column 1; frequencies 1 and 0.01
    angles = torch.tensor([1.0, 0.01])
    torch.testing.assert_close(sines, torch.cat([angles.sin(), angles.cos(), torch.tensor([0.0, 0.0, 1.0, 1.0])]))


def test_the_published_sizes_have_the_published_number_of_parameters():
    config = QwenVL.published_config()
    with torch.device("meta"):
        count = sum(p.numel() for p in AutoModel.from_config(config).parameters())
    head = config.text_config.vocab_size * config.text_config.hidden_size
    positions = 256 * 4096  # fixed; a buffer of ours
    assert (count + head + positions) / 1e9 == pytest.approx(9.657, rel=1e-4)
