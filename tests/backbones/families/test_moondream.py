"""Moondream2 against a plain computation over its authors' tensors, in both of their namings."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModel

from robovlms.backbones.families.moondream import Moondream, convert, image_prefix_mask
from robovlms.commands.convert_backbone import convert_folder
from robovlms.config.choices import ModelSize
from robovlms.config.policy import BackboneConfig

V, D, LAYERS, HEADS = 32, 64, 2, (2, 4)  # widths, layers and heads of Moondream.tiny()


def names(year):
    """The authors' names, and whether a weight is a norm's, by the names of 2025."""
    linear = {
        "vision.patch_emb": (V, 588), "vision.proj_mlp.fc1": (4 * D, 2 * V), "vision.proj_mlp.fc2": (D, 4 * D),
        "text.lm_head": (257, D),
    }  # fmt: skip
    for i in range(LAYERS):
        for part, d, hidden in (("vision", V, 64), ("text", D, 128)):
            linear |= {
                f"{part}.blocks.{i}.attn.qkv": (3 * d, d), f"{part}.blocks.{i}.attn.proj": (d, d),
                f"{part}.blocks.{i}.mlp.fc1": (hidden, d), f"{part}.blocks.{i}.mlp.fc2": (d, hidden),
            }  # fmt: skip
    norms = {"vision.post_ln": V, "text.post_ln": D}
    norms |= {f"vision.blocks.{i}.ln{k}": V for i in range(LAYERS) for k in (1, 2)}
    norms |= {f"text.blocks.{i}.ln": D for i in range(LAYERS)}
    generator = torch.Generator().manual_seed(0)
    weights = {"text.wte": torch.randn(257, D, generator=generator)}
    weights["vision.pos_emb"] = torch.randn(1, 16, V, generator=generator)
    for key, shape in linear.items():
        weights[f"{key}.weight"] = torch.randn(shape, generator=generator) / shape[1] ** 0.5
        weights[f"{key}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    for key, width in norms.items():
        weights[f"{key}.weight"] = 1 + 0.1 * torch.randn(width, generator=generator)
        weights[f"{key}.bias"] = 0.1 * torch.randn(width, generator=generator)
    if year == 2025:
        return {f"model.{key}": value for key, value in weights.items()} | {
            "model.region.coord_features": torch.ones(2)
        }
    visual, decoder = "vision_encoder.encoder.model.visual", "text_model.transformer"
    replaced = {}
    for key, value in weights.items():
        new = key.replace("vision.proj_mlp", "vision_encoder.projection.mlp").replace(
            "vision.post_ln", f"{visual}.norm"
        )
        new = new.replace("vision.pos_emb", f"{visual}.pos_embed").replace("vision.blocks", f"{visual}.blocks")
        new = new.replace("vision.patch_emb", f"{visual}.patch_embed.linear").replace("text.blocks", f"{decoder}.h")
        new = (
            new.replace(".ln1.", ".norm1.")
            .replace(".ln2.", ".norm2.")
            .replace("text.wte", f"{decoder}.embd.wte.weight")
        )
        new = new.replace("text.post_ln", "text_model.lm_head.ln").replace("text.lm_head", "text_model.lm_head.linear")
        if new.startswith(decoder):
            new = new.replace(".attn.qkv", ".mixer.Wqkv").replace(".attn.proj", ".mixer.out_proj")
        replaced[new] = value
    return replaced


def authors_forward(weights, images, text, query, is_causal):  # noqa: C901
    """Hidden state at the query, from the authors' tensors under the names of 2025, with nothing of ours."""

    def linear(x, key):
        return F.linear(x, weights[f"{key}.weight"], weights[f"{key}.bias"])

    def norm(x, key, eps=1e-5):
        return F.layer_norm(x, x.shape[-1:], weights[f"{key}.weight"], weights[f"{key}.bias"], eps)

    def split(x, key, heads):
        return (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in linear(x, key).chunk(3, dim=-1))

    def attend(q, k, v, allowed=None):
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    def mlp(x, key):
        return linear(F.gelu(linear(x, f"{key}.fc1"), approximate="tanh"), f"{key}.fc2")

    patches = images.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).reshape(len(images), 16, 588)
    x = linear(patches, "vision.patch_emb") + weights["vision.pos_emb"]
    for i in range(LAYERS):
        q, k, v = split(norm(x, f"vision.blocks.{i}.ln1", 1e-6), f"vision.blocks.{i}.attn.qkv", HEADS[0])
        x = x + linear(attend(q, k, v), f"vision.blocks.{i}.attn.proj")
        x = x + mlp(norm(x, f"vision.blocks.{i}.ln2", 1e-6), f"vision.blocks.{i}.mlp")
    x = norm(x, "vision.post_ln", 1e-6)
    image = mlp(torch.cat([x, x], dim=-1), "vision.proj_mlp")

    embedded = weights["text.wte"][text]
    x = torch.cat([embedded[:, :1], image, embedded[:, 1:], query], dim=1)
    length, prefix = x.shape[1], 1 + image.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    if not is_causal:
        allowed[:prefix, :prefix] = True
    angles = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, 8, 2) / 8)  # half of 16 entries rotate

    def rotate(x):
        left, right, rest = x[..., :4], x[..., 4:8], x[..., 8:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([left * cos - right * sin, left * sin + right * cos, rest], dim=-1)

    for i in range(LAYERS):
        inner = norm(x, f"text.blocks.{i}.ln")
        q, k, v = split(inner, f"text.blocks.{i}.attn.qkv", HEADS[1])
        attended = linear(attend(rotate(q), rotate(k), v, allowed), f"text.blocks.{i}.attn.proj")
        x = x + attended + mlp(inner, f"text.blocks.{i}.mlp")
    return norm(x[:, -1:], "text.post_ln")


@pytest.fixture(params=[2024, 2025])
def original(request, tmp_path):
    """A folder as the authors published it, of tiny sizes."""
    folder = tmp_path / "original"
    Moondream.tiny().tokenizer.save_pretrained(folder)
    save_file(names(request.param), folder / "model.safetensors")
    return request.param, folder


@torch.no_grad()
def test_features_are_those_of_the_authors_own_tensors(original):
    year, folder = original
    backbone = Moondream.from_original(folder, Moondream.tiny().model.config)
    assert backbone.model.config.prefix_attention == (year == 2025)
    plain = {key.removeprefix("model."): value for key, value in names(2025).items()}
    generator = torch.Generator().manual_seed(1)
    images, query = torch.randn(2, 3, 56, 56, generator=generator), torch.randn(2, 1, D, generator=generator)
    text = torch.tensor(backbone.tokenize(["push it", "lift it"]))
    expected = authors_forward(plain, images, text, query, is_causal=year == 2024)
    ones = torch.ones_like(text, dtype=torch.bool)
    features = backbone(images[:, None, None], text, ones, query[:, None])[:, 0]
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)

    backbone.save_pretrained(folder.parent / "ours")
    config = BackboneConfig(name="moondream", checkpoint=str(folder.parent / "ours"), size=ModelSize.full)
    again = Moondream.from_config(config).eval()
    torch.testing.assert_close(again(images[:, None, None], text, ones, query[:, None])[:, 0], features)


def test_weights_without_a_place_and_missing_ones_are_listed(original):
    _, folder = original
    weights = names(2025)
    with pytest.raises(
        ValueError, match=r"1 weights of the original have no place in our model: vision\.blocks\.0\.gate"
    ):
        convert({**weights, "model.vision.blocks.0.gate": torch.ones(1)})
    del weights["model.text.blocks.1.ln.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 are missing: language_model\.layers\.1\.input_layernorm\.bias"):
        Moondream.from_original(folder, Moondream.tiny().model.config)


def test_weights_of_other_sizes_than_the_published_are_refused(original):
    _, folder = original
    with pytest.raises(ValueError, match="have another shape"):
        convert_folder("moondream", str(folder), str(folder.parent / "ours"))


def test_start_token_and_images_of_a_frame_see_each_other():
    from robovlms.backbones.layout import Layout

    patch = torch.tensor([[-1, 0, 1, -1, -1, -1, 0, -1]])  # <start> image text query <start> image query
    frame = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]])
    mask = torch.ones_like(patch, dtype=torch.bool)
    allowed = image_prefix_mask(Layout(mask, frame, torch.zeros_like(mask), patch, patch))[0].int().tolist()
    assert allowed == [
        [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1, 1],
    ]  # fmt: skip


def test_the_published_sizes_have_the_published_number_of_parameters():
    config = Moondream.published_config()
    with torch.device("meta"):
        count = sum(p.numel() for p in AutoModel.from_config(config).parameters())
    head = config.text_config.vocab_size * (config.text_config.hidden_size + 1)  # of the vocabulary, with a bias
    assert (count + head) / 1e9 == pytest.approx(1.867, rel=1e-3)
