"""OpenFlamingo over all of its decoders against a plain computation over the published tensors."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    GPTNeoXTokenizer,
)

from robovlms.backbones.families.flamingo import Flamingo
from robovlms.backbones.families.llava import tiny_tokenizer
from robovlms.backbones.tiny import TINY_BYTES, TINY_TEXT, TINY_VISION
from robovlms.config.policy import BackboneConfig

V, D, LATENTS, DEPTH, LAYERS = 32, 64, 4, 2, 4
EVERY = {"mosaic_gpt": 1, "mpt": 2, "gpt_neox": 2, "llama": 4}  # 3B, 4B and 9B have 1, 2 and 4
EMBEDDING = {
    "mosaic_gpt": "transformer.wte", "mpt": "transformer.wte", "gpt_neox": "gpt_neox.embed_in",
    "llama": "model.embed_tokens",
}  # fmt: skip


def tokenizer_of(family):
    if family == "llama":
        return tiny_tokenizer()
    return GPTNeoXTokenizer(vocab={token: i for i, token in enumerate(["<|endoftext|>", *TINY_BYTES])}, merges=[])


def linear_of(out, wide, generator):
    return torch.randn(out, wide, generator=generator) / wide**0.5


def norm_of(size, generator, bias=True):
    values = {"weight": 1 + 0.1 * torch.randn(size, generator=generator)}
    return values | ({"bias": 0.1 * torch.randn(size, generator=generator)} if bias else {})


def mosaic_weights(generator):
    """MPT-1B's own names: norms without bias, queries and keys normed over all heads."""
    weights = {"model.transformer.wte.weight": torch.randn(len(tokenizer_of("mosaic_gpt")), D, generator=generator)}
    norms = ["model.transformer.ln_f"]
    for i in range(LAYERS):
        block = f"model.transformer.blocks.{i}"
        norms += [f"{block}.{name}" for name in ("ln_1", "ln_2", "attn.q_ln", "attn.k_ln")]
        weights |= {
            f"{block}.attn.Wqkv.weight": linear_of(3 * D, D, generator),
            f"{block}.attn.out_proj.weight": linear_of(D, D, generator),
            f"{block}.mlp.mlp_up.weight": linear_of(4 * D, D, generator),
            f"{block}.mlp.mlp_down.weight": linear_of(D, 4 * D, generator),
        }  # fmt: skip
    return weights | {f"{key}.weight": norm_of(D, generator, bias=False)["weight"] for key in norms}


def own_weights(family, vocabulary):
    """What OpenFlamingo's checkpoint.pt holds: perceiver, gated cross-attention, embeddings."""
    generator = torch.Generator().manual_seed(1)
    weights = {
        "perceiver.latents": torch.randn(LATENTS, V, generator=generator),
        f"lang_encoder.{EMBEDDING[family]}.weight": torch.randn(vocabulary, D, generator=generator),
    }
    norms = {"perceiver.norm": V}
    for i in range(DEPTH):
        layer = f"perceiver.layers.{i}"
        norms |= {f"{layer}.0.norm_media": V, f"{layer}.0.norm_latents": V, f"{layer}.1.0": V}
        weights |= {
            f"{layer}.0.to_q.weight": linear_of(512, V, generator),
            f"{layer}.0.to_kv.weight": linear_of(1024, V, generator),
            f"{layer}.0.to_out.weight": linear_of(V, 512, generator),
            f"{layer}.1.1.weight": linear_of(4 * V, V, generator),
            f"{layer}.1.3.weight": linear_of(V, 4 * V, generator),
        }
    for i in range(EVERY[family] - 1, LAYERS, EVERY[family]):
        layer = f"lang_encoder.gated_cross_attn_layers.{i}"
        norms |= {f"{layer}.attn.norm": D, f"{layer}.ff.0": D}
        weights |= {
            f"{layer}.attn_gate": torch.tensor([0.7]),
            f"{layer}.ff_gate": torch.tensor([-0.4]),
            f"{layer}.attn.to_q.weight": linear_of(512, D, generator),
            f"{layer}.attn.to_kv.weight": linear_of(1024, V, generator),
            f"{layer}.attn.to_out.weight": linear_of(D, 512, generator),
            f"{layer}.ff.1.weight": linear_of(4 * D, D, generator),
            f"{layer}.ff.3.weight": linear_of(D, 4 * D, generator),
        }
    for key, size in norms.items():
        weights |= {f"{key}.{name}": value for name, value in norm_of(size, generator).items()}
    return weights


@pytest.fixture(params=list(EVERY))
def original(request, tmp_path):
    """The family, and the folder that its users put together, of tiny sizes."""
    family, folder = request.param, tmp_path / "original"
    torch.manual_seed(0)
    tokenizer = tokenizer_of(family)
    text = {key: TINY_TEXT[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size")}
    text |= {"num_hidden_layers": LAYERS, "vocab_size": len(tokenizer), "tie_word_embeddings": family == "mpt"}
    if family == "mosaic_gpt":
        values = {"model_type": family, "d_model": D, "n_heads": 4, "n_layers": LAYERS, "mlp_ratio": 4}
        (folder / "language").mkdir(parents=True)
        values |= {"vocab_size": len(tokenizer), "attn_qk_ln": True, "alibi": True, "no_bias": True}
        (folder / "language" / "config.json").write_text(json.dumps(values))
        save_file(mosaic_weights(torch.Generator().manual_seed(0)), folder / "language" / "model.safetensors")
    else:
        sizes = {"d_model": D, "n_heads": 4, "n_layers": LAYERS} if family == "mpt" else {}
        config = CONFIG_MAPPING[family](**{**({} if sizes else text), "vocab_size": len(tokenizer), **sizes})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    sizes = {"hidden_size": V, "intermediate_size": 2 * V, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPConfig(text_config={**sizes, "vocab_size": 99}, vision_config=TINY_VISION, projection_dim=8)
    CLIPModel(clip).save_pretrained(folder / "clip")
    crop = {"height": 56, "width": 56}
    CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=crop).save_pretrained(folder / "clip")
    vocabulary = len(tokenizer) + (2 if tokenizer.pad_token else 3)
    published = {f"module.{key}": value for key, value in own_weights(family, vocabulary).items()}
    torch.save({"model_state_dict": published}, folder / "checkpoint.pt")
    return family, folder


class Reference:
    """The published computation, over the published tensors."""

    def __init__(self, weights):
        self.weights = weights

    def linear(self, x, key):
        return F.linear(x, self.weights[f"{key}.weight"])

    def norm(self, x, key):
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{key}.weight"], self.weights.get(f"{key}.bias"))

    def attend(self, q, k, v, heads, bias=0.0):
        q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
        return ((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def widen(self, x, key):
        return self.linear(F.gelu(self.linear(self.norm(x, f"{key}.0"), f"{key}.1")), f"{key}.3")

    def perceive(self, patches):
        x = self.weights["perceiver.latents"].expand(len(patches), -1, -1)
        for i in range(DEPTH):
            layer = f"perceiver.layers.{i}"
            inner = self.norm(x, f"{layer}.0.norm_latents")
            keys = torch.cat([self.norm(patches, f"{layer}.0.norm_media"), inner], dim=1)
            k, v = self.linear(keys, f"{layer}.0.to_kv").chunk(2, -1)
            x = x + self.linear(self.attend(self.linear(inner, f"{layer}.0.to_q"), k, v, 8), f"{layer}.0.to_out")
            x = x + self.widen(x, f"{layer}.1")
        return self.norm(x, "perceiver.norm")

    def look(self, x, latents, i, first):
        """The gated cross-attention before layer `i`; tokens before `first` stand before `<image>`."""
        layer = f"lang_encoder.gated_cross_attn_layers.{i}"
        if f"{layer}.attn_gate" not in self.weights:
            return x
        k, v = self.linear(latents, f"{layer}.attn.to_kv").chunk(2, -1)
        view_mask = self.attend(self.linear(self.norm(x, f"{layer}.attn.norm"), f"{layer}.attn.to_q"), k, v, 8)
        view_mask[:, :first] = 0
        x = x + self.linear(view_mask, f"{layer}.attn.to_out") * self.weights[f"{layer}.attn_gate"].tanh()
        return x + self.widen(x, f"{layer}.ff") * self.weights[f"{layer}.ff_gate"].tanh()

    def mosaic(self, x, latents):
        """MPT-1B, of its own tensors, with ALiBi over four heads."""
        length, slopes = x.shape[1], torch.tensor([2 ** -(8 * (i + 1) / 4) for i in range(4)])
        place = torch.arange(length)
        bias = slopes[:, None, None] * (place[None] - place[:, None])
        bias = bias.masked_fill(place[None] > place[:, None], float("-inf"))
        for i in range(LAYERS):
            x, block = self.look(x, latents, i, 0), f"model.transformer.blocks.{i}"
            q, k, v = self.linear(self.norm(x, f"{block}.ln_1"), f"{block}.attn.Wqkv").chunk(3, -1)
            q, k = self.norm(q, f"{block}.attn.q_ln"), self.norm(k, f"{block}.attn.k_ln")
            x = x + self.linear(self.attend(q, k, v, 4, bias), f"{block}.attn.out_proj")
            wide = F.gelu(self.linear(self.norm(x, f"{block}.ln_2"), f"{block}.mlp.mlp_up"))
            x = x + self.linear(wide, f"{block}.mlp.mlp_down")
        return self.norm(x, "model.transformer.ln_f")

    def native(self, decoder, x, latents, first):
        """A decoder that transformers knows, with the cross-attention as hooks before its layers."""
        layers = decoder.blocks if hasattr(decoder, "blocks") else decoder.layers

        def before(i):
            def hook(_, args, kwargs):
                args = (*args, *([kwargs.pop("hidden_states")] if not args else []))
                return (self.look(args[0], latents, i, first), *args[1:]), kwargs

            return hook

        for i, layer in enumerate(layers):
            layer.register_forward_pre_hook(before(i), with_kwargs=True)
        return decoder(inputs_embeds=x, use_cache=False).last_hidden_state


@torch.no_grad()
def test_features_are_those_of_the_published_tensors(original):
    family, folder = original
    backbone = Flamingo.from_original(folder)
    own = own_weights(family, len(backbone.embedding.weight))
    generator = torch.Generator().manual_seed(2)
    images, query = torch.randn(2, 2, 3, 56, 56, generator=generator), torch.randn(2, 1, D, generator=generator)
    text = torch.tensor(backbone.tokenize(["push it", "lift it"]))
    assert backbone.tokenizer.convert_ids_to_tokens(text[0].tolist())[-1] == "<|endofchunk|>"

    clip = CLIPModel.from_pretrained(folder / "clip").eval()
    patches = clip.vision_model(pixel_values=images.flatten(0, 1)).last_hidden_state[:, 1:]
    mosaic = mosaic_weights(torch.Generator().manual_seed(0)) if family == "mosaic_gpt" else {}
    reference = Reference(own | mosaic)
    latents = reference.perceive(patches).unflatten(0, (2, 2)).flatten(1, 2)
    embedded = torch.cat([own[f"lang_encoder.{EMBEDDING[family]}.weight"][text], query], dim=1)
    if family == "mosaic_gpt":
        expected = reference.mosaic(embedded, latents)
    else:
        decoder = AutoModelForCausalLM.from_pretrained(folder / "language").eval().base_model
        expected = reference.native(decoder, embedded, latents, int(family == "llama"))
    ones = torch.ones_like(text, dtype=torch.bool)
    features = backbone(images[:, None], text, ones, query[:, None])[:, 0]
    torch.testing.assert_close(features, expected[:, -1:], rtol=0, atol=1e-5)

    backbone.save_pretrained(folder.parent / "ours")
    ours = BackboneConfig(name="flamingo", checkpoint=str(folder.parent / "ours"), attn_implementation="eager")
    again = Flamingo.from_config(ours).eval()
    assert again.tokenize(["push it"]) == backbone.tokenize(["push it"])
    torch.testing.assert_close(again(images[:, None], text, ones, query[:, None])[:, 0], features)


@pytest.mark.parametrize("original", ["mosaic_gpt"], indirect=True)
def test_weights_without_a_place_and_missing_ones_are_listed(original):
    _, folder = original
    published = torch.load(folder / "checkpoint.pt")["model_state_dict"]
    torch.save(
        {"model_state_dict": published | {"module.perceiver.frame_embs": torch.zeros(2)}}, folder / "checkpoint.pt"
    )
    with pytest.raises(ValueError, match=r"1 are not the model's: perceiver\.frame_embs"):
        Flamingo.from_original(folder)
    left = {key: value for key, value in published.items() if key != "module.perceiver.norm.bias"}
    torch.save({"model_state_dict": left}, folder / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"1 are missing: perceiver\.norm\.bias"):
        Flamingo.from_original(folder)


@pytest.mark.parametrize("original", ["llama"], indirect=True)
def test_an_incomplete_folder_and_another_decoder_are_named(original):
    _, folder = original
    values = json.loads((folder / "language" / "config.json").read_text())
    (folder / "language" / "config.json").write_text(json.dumps(values | {"model_type": "opt"}))
    with pytest.raises(ValueError, match="holds a 'opt' model: OpenFlamingo's are mosaic_gpt, mpt, gpt_neox, llama"):
        Flamingo.from_original(folder)
    shutil.rmtree(folder / "clip")
    with pytest.raises(FileNotFoundError, match=r"clip/config\.json does not exist: put OpenFlamingo's checkpoint\.pt"):
        Flamingo.from_original(folder)
