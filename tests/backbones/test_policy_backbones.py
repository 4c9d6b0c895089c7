"""The VLM taken out of a policy of others: every tensor placed or named, and the same features as before."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_backbones import inputs

from robovlms.commands.convert_backbone import convert_folder
from robovlms.config.schemas import schema_of
from robovlms.errors import UserError
from robovlms.registry import BACKBONES

EXPERT = {
    "paligemma": {
        "paligemma_with_expert.gemma_expert.model.layers.0.self_attn.q_proj.weight": (4, 4),
        "paligemma_with_expert.gemma_expert.model.norm.weight": (4,),
        "state_proj.weight": (4, 32),
        "action_in_proj.weight": (4, 32),
        "action_in_proj.bias": (4,),
        "action_time_mlp_out.bias": (4,),
    },
    "smolvlm": {
        "model.vlm_with_expert.lm_expert.layers.0.mlp.gate_proj.weight": (4, 4),
        "model.vlm_with_expert.vlm.lm_head.weight": (8, 4),
        "model.state_proj.weight": (4, 32),
        "model.action_out_proj.weight": (32, 4),
        "normalize_inputs.buffer_observation_state.mean": (6,),
    },
}


def named_as_in(policy, weights):
    """Return a VLM's weights under the names of openpi's and lerobot's checkpoints."""
    if policy == "smolvla":
        return {f"model.vlm_with_expert.vlm.model.{key}": value for key, value in weights.items()}
    key = {"openpi": "model.{}", "lerobot": "model.{}", "lerobot_2025": "{}"}[policy]
    start = {"openpi": "", "lerobot": "model.", "lerobot_2025": "model."}[policy]
    start, decoder = f"{start}paligemma_with_expert.paligemma.", "language_model.model." if "20" in policy else None
    named = {}
    for name, value in weights.items():
        ours = name.replace("vision_tower.", "vision_tower.vision_model.")
        ours = ours.replace("language_model.", decoder) if decoder else ours
        named[start + key.format(ours)] = value
    return named


def make_policy(folder, family, policy, change=None):
    """Write a tiny VLM, and a policy that has it; return the VLM."""
    torch.manual_seed(0)
    backbone = BACKBONES.get(family).tiny().eval()
    backbone.save_pretrained(folder / "vlm")
    weights = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    if change is not None:
        change(weights)
    expert = {key: torch.randn(shape) for key, shape in EXPERT[family].items()}
    (folder / "policy").mkdir()
    save_file(named_as_in(policy, weights) | expert, folder / "policy" / "model.safetensors")
    (folder / "policy" / "config.json").write_text(json.dumps({"type": policy}))
    return backbone


def converted(folder, family):
    convert_folder(family, str(folder / "policy"), str(folder / "out"), str(folder / "vlm"))
    config = schema_of("backbone", family)(name=family, checkpoint=str(folder / "out"))
    return BACKBONES.get(family).from_config(config).eval()


POLICIES = [("paligemma", "openpi"), ("paligemma", "lerobot"), ("paligemma", "lerobot_2025"), ("smolvlm", "smolvla")]


@pytest.mark.parametrize(("family", "policy"), POLICIES)
def test_a_policys_vlm_has_the_features_that_it_had_there_and_what_is_left_out_is_named(
    tmp_path, caplog, family, policy
):
    caplog.set_level(logging.INFO, "robovlms")
    wanted = make_policy(tmp_path, family, policy)
    found = converted(tmp_path, family)
    with torch.no_grad():
        torch.testing.assert_close(found(*inputs(wanted)), wanted(*inputs(wanted)))
    assert f"{len(wanted.model.state_dict())} tensors of" in caplog.text
    told = next(record.getMessage() for record in caplog.records if record.getMessage().startswith("left out"))
    assert all(name in told for name in ("state_proj", "expert", "action_"))


def test_a_decoder_cut_short_is_as_deep_as_the_policy_has_it(tmp_path):
    def cut(weights):
        for key in [key for key in weights if key.startswith("text_model.layers.1.")]:
            del weights[key]

    whole = make_policy(tmp_path, "smolvlm", "smolvla", cut)
    found = converted(tmp_path, "smolvlm")
    whole.model.text_model.layers = whole.model.text_model.layers[:1]
    assert len(found.model.text_model.layers) == 1
    with torch.no_grad():
        torch.testing.assert_close(found(*inputs(whole)), whole(*inputs(whole)))


def test_rows_that_no_text_uses_may_lack_and_words_may_not(tmp_path):
    tiny = BACKBONES.get("paligemma").tiny()
    key, special = "language_model.embed_tokens.weight", set(tiny.tokenizer.all_special_ids)
    words = len(tiny.tokenizer)
    while words - 1 in special:
        words -= 1
    assert words < len(tiny.tokenizer)  # the mark of an image is the last, as in the published one
    for number, folder in ((words, tmp_path / "marks"), (words - 1, tmp_path / "words")):
        folder.mkdir()

        def shorten(weights, number=number):
            weights[key] = weights[key][:number].clone()

        wanted = make_policy(folder, "paligemma", "openpi", shorten)
        if number < words:
            with pytest.raises(UserError, match="has 1 more"):
                converted(folder, "paligemma")
        else:
            found = converted(folder, "paligemma")
            assert torch.equal(found.embedding.weight[:words], wanted.embedding.weight[:words])
            assert not found.embedding.weight[words:].any()


def test_a_head_in_place_of_the_embedding_is_the_embedding(tmp_path):
    wanted = make_policy(tmp_path, "paligemma", "openpi")
    path, start = tmp_path / "policy" / "model.safetensors", "paligemma_with_expert.paligemma."
    weights = load_file(path)
    weights[f"{start}lm_head.weight"] = weights.pop(f"{start}model.language_model.embed_tokens.weight")
    save_file(weights, path)
    assert torch.equal(converted(tmp_path, "paligemma").embedding.weight, wanted.embedding.weight)


def renamed(weights):
    weights["text_model.layers.0.self_attn.q_proj.lora_A"] = torch.zeros(2, 2)


def other_shape(weights):
    weights["connector.modality_projection.proj.weight"] = torch.zeros(2, 2)


def lost(weights):
    del weights["text_model.norm.weight"]


def unknown(weights):
    weights["../../../extra.weight"] = torch.zeros(2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (renamed, "1 are not the model's: text_model.layers.0.self_attn.q_proj.lora_A"),
        (other_shape, r"1 have another shape: connector\.modality_projection\.proj\.weight \(2, 2\) instead of"),
        (lost, r"1 are missing: text_model\.norm\.weight"),
        (unknown, r"1 weights of the original have no place in our model: .*extra\.weight"),
        (dict.clear, "source has 0 layers of a decoder"),
    ],
)
def test_what_does_not_fit_is_listed_and_nothing_is_written(tmp_path, change, named):
    make_policy(tmp_path, "smolvlm", "smolvla", change)
    with pytest.raises(UserError, match=named):
        converted(tmp_path, "smolvlm")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "vlm", "named"),
    [
        (
            "llava_onevision",
            None,
            r"backbone=llava_onevision reads published checkpoints itself.* family=paligemma \(pi0\)",
        ),
        ("moondream", "here", "vlm=here is ignored: family=moondream"),
    ],
)
def test_families_that_no_policy_has_are_refused(tmp_path, family, vlm, named):
    make_policy(tmp_path, "smolvlm", "smolvla")
    with pytest.raises(UserError, match=named):
        convert_folder(family, str(tmp_path / "policy"), str(tmp_path / "out"), vlm)


def test_a_published_vlm_is_not_taken_for_a_policy(tmp_path):
    make_policy(tmp_path, "paligemma", "openpi")
    with pytest.raises(UserError, match=r"set backbone\.checkpoint=.*vlm"):
        convert_folder("paligemma", str(tmp_path / "vlm"), str(tmp_path / "out"))
