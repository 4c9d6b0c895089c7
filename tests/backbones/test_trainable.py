"""Which weights a run trains: adapters, the last layers, and what a query starts from."""

import logging
from pathlib import Path

import pytest
import torch
from calvin_folder import make_calvin_folder, tiny_run
from composing import completed, composed
from test_backbones import NAMES, gradients, inputs, tiny

from robovlms.backbones.lora import add_lora, merge_lora
from robovlms.commands.merge_lora import merge_checkpoint
from robovlms.commands.train import train
from robovlms.config.choices import QueryInit, WeightType
from robovlms.config.policy import LoRAConfig
from robovlms.config.training import OptimizerConfig
from robovlms.heads.base import HeadSizes, start_query
from robovlms.heads.schemas.lstm import LSTMHeadConfig
from robovlms.policy.checkpoint import load_policy, resolve_checkpoint
from robovlms.registry import BACKBONES
from robovlms.training.optimizer.optimization import make_optimizer


def shake(backbone):
    """Return the adapters weights, as training would."""
    torch.manual_seed(3)
    for name, p in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_adapters_start_as_nothing_take_all_gradients_and_merge_away(name):
    pytest.importorskip("peft")
    plain, adapted = tiny(name), tiny(name, lora=LoRAConfig(rank=4, parts=["text", "vision"]))
    batch = inputs(plain)
    with torch.no_grad():
        torch.testing.assert_close(adapted(*batch), plain(*batch), rtol=0, atol=1e-6)
    inside = {id(p) for part in ("text", "vision") for module in plain.parts()[part] for p in module.parameters()}
    elsewhere = {key for key, p in plain.named_parameters() if p.requires_grad and id(p) not in inside}
    grads = gradients(adapted, *batch)
    assert {key for key in grads if "lora" not in key} == elsewhere
    assert any("lora_A" in key for key in grads)
    assert all(grad is not None for grad in grads.values())

    shake(adapted.eval())
    with torch.no_grad():
        wanted = adapted(*batch)
        assert (wanted - plain(*batch)).abs().max() > 1e-4
        merge_lora(adapted)
        torch.testing.assert_close(adapted(*batch), wanted, rtol=0, atol=1e-5)
    assert set(adapted.state_dict()) == set(plain.state_dict())


def test_a_resampler_shortens_every_view_and_is_trained():
    resampled = tiny("llava", resample=5, freeze_vision=True, freeze_text=True, freeze_embeddings=True)
    lengths = []
    resampled.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    batch = inputs(resampled)
    grads = gradients(resampled, *batch)
    images, text = batch[0], batch[1]
    assert lengths == [images.shape[1] * (images.shape[2] * 5 + text.shape[1] + batch[3].shape[2])]
    assert all(grad is not None for grad in grads.values())
    assert {key.split(".")[0] for key in grads} == {"resampler", "model"}
    assert resampled.resampler.norm.weight.mean().item() == pytest.approx(resampled.embedding_rms(), rel=1e-5)


@pytest.mark.slow
def test_a_checkpoint_keeps_its_resampler(tmp_path):
    data = make_calvin_folder(tmp_path / "data")
    extra = ["backbone=llava", "backbone.size=tiny", "backbone.resample=4", "schedule.total=2 step"]
    train(completed(composed(*tiny_run(data, tmp_path / "run", *extra))))
    again, policy, *_ = load_policy(resolve_checkpoint(tmp_path / "run"))
    assert again.backbone.resample == 4
    assert policy.backbone.resampler.latents.shape == (4, 64)


@pytest.mark.parametrize("name", NAMES)
def test_a_resampler_is_read_or_refused(name):
    if not BACKBONES.get(name).can_resample:
        with pytest.raises(ValueError, match=r"backbone\.resample=4 does not fit this backbone"):
            tiny(name, resample=4)
        return
    images, *rest = inputs(tiny(name))
    resampled = tiny(name, resample=4)
    with torch.no_grad():
        assert resampled.encode(images).shape[3] == 4
        assert (resampled(images, *rest) - resampled(-images, *rest)).abs().max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_frozen_weights_can_be_stored_in_half_the_memory(name, caplog):
    frozen = {f"freeze_{part}": True for part in ("vision", "text", "embeddings")}
    with caplog.at_level(logging.WARNING, "robovlms"):
        coarse = tiny(name, weights=WeightType.bf16, lora=LoRAConfig(rank=4), **frozen)
    adapters = {key: p for key, p in coarse.named_parameters() if "lora_" in key}
    assert {p.dtype for p in adapters.values()} == {torch.float32}
    assert {p.dtype for key, p in coarse.named_parameters() if key not in adapters} == {torch.bfloat16}
    between = [key for key, p in coarse.named_parameters() if p.requires_grad and key not in adapters]
    assert ("are lost" in caplog.text) == bool(between)  # what stands between vision and text is always trained
    batch = inputs(coarse)
    with torch.no_grad():
        features, exact = coarse(*batch), tiny(name)(*batch)
    assert (features.float() - exact).abs().max() < 0.05 * exact.abs().max()
    grads = gradients(coarse, *batch)
    assert all(grads[key].isfinite().all() for key in adapters)


@pytest.mark.slow
def test_weights_that_are_frozen_and_coarse_can_have_their_adapters_merged(tmp_path: Path):
    pytest.importorskip("peft")
    folder = make_calvin_folder(tmp_path / "calvin")
    extra = ("schedule.total=2 step", "trainer.save_every=2 step", "backbone.lora.rank=4", "backbone.weights=bf16")
    run = train(completed(composed(*tiny_run(folder, tmp_path / "run", *extra))))
    merge_checkpoint(resolve_checkpoint(run), tmp_path / "merged")
    config, merged, *_ = load_policy(tmp_path / "merged")
    assert config.backbone.weights is WeightType.fp32
    assert {p.dtype for p in merged.parameters()} == {torch.float32}


def test_merging_weights_too_coarse_for_it_is_refused():
    pytest.importorskip("peft")
    backbone = tiny("nano").bfloat16()
    add_lora(backbone, LoRAConfig(rank=4))
    shake(backbone)
    with pytest.raises(ValueError, match="bfloat16 are too coarse, merge in float32"):
        merge_lora(backbone)


def test_adapters_in_a_part_that_does_not_exist_are_refused():
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match=r"backbone\.lora\.parts has 'txt': choose from vision, text, embeddings"):
        tiny("nano", lora=LoRAConfig(rank=4, parts=["txt"]))


def test_adapters_stand_beside_the_layers_that_are_named():
    pytest.importorskip("peft")
    backbone = tiny("llava", lora=LoRAConfig(rank=4, modules=["q_proj", "v_proj"]))
    adapted = {name.partition(".lora_A")[0] for name, _ in backbone.named_parameters() if "lora_A" in name}
    attention = [f"model.language_model.layers.{i}.self_attn" for i in range(2)]
    assert adapted == {f"{each}.{name}" for each in attention for name in ("q_proj", "v_proj")}
    with pytest.raises(ValueError, match=r"modules has 'query': in \['text'\] are down_proj, gate_proj, k_proj"):
        tiny("llava", lora=LoRAConfig(rank=4, modules=["query"]))


@pytest.mark.parametrize("name", NAMES)
def test_only_the_last_layers_of_the_decoder_train(name):
    backbone = tiny(name, train_text_layers=1)
    layers = next(module for module in backbone.parts()["text"] if isinstance(module, torch.nn.ModuleList))
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    assert trained == [False] * (len(layers) - 1) + [True]
    assert all(grad is not None for grad in gradients(backbone, *inputs(backbone)).values())


@pytest.mark.parametrize("name", NAMES)
def test_the_optimizer_lists_every_trained_parameter_once(name):
    backbone = tiny(name)
    listed = [
        id(p)
        for group in make_optimizer(backbone, OptimizerConfig(name="adamw", lr=1e-3)).param_groups
        for p in group["params"]
    ]
    assert sorted(listed) == sorted(id(p) for p in backbone.parameters() if p.requires_grad)


def test_more_layers_than_there_are_and_contradictions_are_refused():
    with pytest.raises(ValueError, match=r"backbone\.train_text_layers=3 must be 1 to 2"):
        tiny("nano", train_text_layers=3)
    with pytest.raises(ValueError, match=r"contradicts backbone\.freeze_text=true"):
        tiny("nano", train_text_layers=1, freeze_text=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_query_can_start_as_large_as_the_backbones_own_tokens(name):
    backbone = tiny(name)
    ids = torch.tensor(backbone.tokenize(["pick up the red block on the table"]))
    rms = backbone.embedding_rms()
    assert rms == pytest.approx(backbone.embed_text(ids).square().mean().sqrt().item(), rel=0.2)  # other prompt
    sizes = HeadSizes(feature_dim=10_000, action_dim=7, binary=(6,), window_size=1, chunk_size=1, embedding_rms=rms)
    query = start_query(LSTMHeadConfig(name="lstm", query_init=QueryInit.embedding), sizes)
    assert query.square().mean().sqrt().item() == pytest.approx(rms, rel=0.05)
    assert not start_query(LSTMHeadConfig(name="lstm"), sizes).any()


@pytest.mark.slow
def test_a_checkpoint_with_adapters_loads_and_merges_into_one_without(tmp_path: Path):
    pytest.importorskip("peft")
    folder = make_calvin_folder(tmp_path / "calvin")
    extra = ("schedule.total=2 step", "trainer.save_every=2 step", "backbone.lora.rank=4", "optimizer.lr=1e-2")
    run = train(completed(composed(*tiny_run(folder, tmp_path / "run", *extra))))
    merge_checkpoint(resolve_checkpoint(run), tmp_path / "merged")
    with pytest.raises(FileExistsError, match="choose another, or delete it"):
        merge_checkpoint(resolve_checkpoint(run), tmp_path / "merged")
    with pytest.raises(ValueError, match="has no adapters to merge"):
        merge_checkpoint(tmp_path / "merged", tmp_path / "twice")
    _, adapted, *_ = load_policy(resolve_checkpoint(run))
    config, merged, *_ = load_policy(tmp_path / "merged")
    assert config.backbone.lora.rank == 0
    batch = inputs(merged.backbone)
    with torch.no_grad():
        torch.testing.assert_close(merged.eval().backbone(*batch), adapted.eval().backbone(*batch), rtol=0, atol=1e-5)
