"""The contract of every backbone, on tiny random models of the real architectures."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robovlms.backbones.schemas.nano import NanoBackboneConfig
from robovlms.config.choices import ModelSize
from robovlms.config.policy import BackboneConfig, Checkpointing
from robovlms.errors import UserError
from robovlms.registry import BACKBONES

NAMES = BACKBONES.names()
COMPILED = ["kosmos", "nano", "paligemma", "qwen2_5_vl"]
UNCOMPILED: list[str] = []  # where transformers looks at numbers on the way
NANO = {"image_size": 48, "hidden_dim": 64, "num_layers": 1, "num_heads": 4}  # a saved folder knows better


def config(name, **options):
    if name == "nano":
        return NanoBackboneConfig(name=name, **NANO, **options)
    options.setdefault("attn_implementation", BACKBONES.get(name).attentions[0])  # as in its YAML
    return BackboneConfig(name=name, **options)


def tiny(name, seed=0, **options):
    torch.manual_seed(seed)
    return BACKBONES.get(name).from_config(config(name, size=ModelSize.tiny, **options)).eval()


def inputs(backbone, n=2, t=1, v=1, q=1, texts=("push it", "lift the red block")):
    generator = torch.Generator().manual_seed(1)
    rows = backbone.tokenize([texts[i % len(texts)] for i in range(n)])
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    size = backbone.image_spec.size
    images = torch.randn(n, t, v, 3, size, size, generator=generator)
    return images, ids, mask, torch.randn(n, t, q, backbone.hidden_dim, generator=generator)


def gradients(backbone, *batch):
    backbone.train().zero_grad()
    torch.manual_seed(2)  # Kosmos-2 has dropout
    backbone(*batch).square().mean().backward()
    return {name: p.grad for name, p in backbone.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module", params=NAMES)
def backbone(request):
    return tiny(request.param)


@torch.no_grad()
def test_a_saved_folder_gives_the_same_backbone(backbone, tmp_path, request):
    name = type(backbone).__module__.rsplit(".", 1)[-1]
    backbone.save_pretrained(tmp_path)
    again = BACKBONES.get(name).from_config(config(name, checkpoint=str(tmp_path))).eval()
    assert again.tokenize(["lift it", "a"]) == backbone.tokenize(["lift it", "a"])
    assert again.image_spec == backbone.image_spec
    batch = inputs(backbone)
    torch.testing.assert_close(again(*batch), backbone(*batch), rtol=0, atol=0)


@torch.no_grad()
def test_a_folder_without_weights_starts_from_random_ones(backbone, tmp_path):
    name = type(backbone).__module__.rsplit(".", 1)[-1]
    backbone.save_pretrained(tmp_path, weights=False)
    assert not list(tmp_path.glob("*.safetensors"))
    again = BACKBONES.get(name).from_config(config(name, checkpoint=str(tmp_path), random_init=True)).eval()
    shapes = {key: p.shape for key, p in backbone.named_parameters()}
    assert {key: p.shape for key, p in again.named_parameters()} == shapes
    batch = inputs(backbone)
    assert not torch.allclose(again(*batch), backbone(*batch))


@torch.no_grad()
@pytest.mark.parametrize(("n", "t", "v", "q"), [(2, 1, 1, 1), (1, 4, 2, 2), (3, 1, 3, 1), (2, 4, 1, 1)])
def test_any_batch_window_and_number_of_views_gives_one_feature_per_query(backbone, n, t, v, q):
    features = backbone(*inputs(backbone, n, t, v, q))
    assert features.shape == (n, t, q, backbone.hidden_dim)
    assert features.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize(("t", "v"), [(1, 1), (4, 2), (1, 3)])
def test_padding_and_other_rows_change_no_feature(backbone, t, v):
    texts = ("push it", "lift the red block", "go")
    images, ids, mask, queries = inputs(backbone, n=3, t=t, v=v, q=2, texts=texts)
    together = backbone(images, ids, mask, queries)
    lengths = mask.sum(1).tolist()
    assert len(set(lengths)) == 3
    for i, length in enumerate(lengths):
        row = slice(i, i + 1)
        alone = backbone(images[row], ids[row, :length], mask[row, :length], queries[row])
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-5)
    scribbled = torch.where(mask, ids, 5)
    torch.testing.assert_close(backbone(images, scribbled, mask, queries), together, rtol=0, atol=1e-5)


@torch.no_grad()
def test_later_frames_and_later_queries_change_no_earlier_feature(backbone):
    images, ids, mask, queries = inputs(backbone, n=2, t=4, q=2)
    features = backbone(images, ids, mask, queries)
    later_images, later_queries = images.clone(), queries.clone()
    later_images[:, 2:] = -images[:, 2:]
    later_queries[:, 2:] = -queries[:, 2:]
    changed = backbone(later_images, ids, mask, later_queries)
    torch.testing.assert_close(changed[:, :2], features[:, :2], rtol=0, atol=1e-5)
    assert (changed[:, 2:] - features[:, 2:]).abs().max() > 1e-3
    second_query = queries.clone()
    second_query[:, 3, 1] = -queries[:, 3, 1]
    changed = backbone(images, ids, mask, second_query)
    torch.testing.assert_close(changed[:, 3, 0], features[:, 3, 0], rtol=0, atol=1e-5)
    assert (changed[:, 3, 1] - features[:, 3, 1]).abs().max() > 1e-3


@torch.no_grad()
def test_every_view_the_text_and_earlier_frames_reach_the_features(backbone):
    images, ids, mask, queries = inputs(backbone, n=2, t=2, v=3, texts=("push it", "lift it"))
    features = backbone(images, ids, mask, queries)
    swapped = backbone(images, ids.flip(0), mask.flip(0), queries)
    assert (swapped - features).abs().max() > 1e-3
    for view in range(3):
        earlier = images.clone()
        earlier[:, 0, view] = -images[:, 0, view]
        changed = (backbone(earlier, ids, mask, queries) - features).abs().amax((0, 2, 3))
        assert (changed > 1e-5).all()


@torch.no_grad()
@pytest.mark.parametrize("t", [1, 3])
def test_the_pixels_of_a_view_that_is_hidden_change_no_feature(backbone, t):
    images, ids, mask, queries = inputs(backbone, n=3, t=t, v=2, q=2)
    view_mask = torch.tensor([[True, False], [False, True], [True, True]])
    features = backbone(images, ids, mask, queries, view_mask)
    other = images.clone()
    other[0, :, 1], other[1, :, 0] = 7, torch.randn_like(images[1, :, 0])
    assert torch.equal(backbone(other, ids, mask, queries, view_mask), features)
    other[2, :, 0] = 7
    assert (backbone(other, ids, mask, queries, view_mask) - features)[2].abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("t", [1, 3])
def test_a_sequence_that_lacks_views_is_read_as_if_there_were_no_such_camera(backbone, t):
    images, ids, mask, queries = inputs(backbone, n=2, t=t, v=3, q=2)
    view_mask = torch.tensor([[False, True, False], [True, False, True]])
    features = backbone(images, ids, mask, queries, view_mask)
    for row, shown in enumerate(view_mask):
        one = slice(row, row + 1)
        alone = backbone(images[one][:, :, shown], ids[one], mask[one], queries[one])
        torch.testing.assert_close(features[one], alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_sequence_without_any_view_is_text_and_queries(backbone):
    images, ids, mask, queries = inputs(backbone, v=2)
    features = backbone(images, ids, mask, queries, torch.zeros(2, 2, dtype=torch.bool))
    assert features.isfinite().all()
    text_alone = backbone.read(backbone.encode(images)[:, :, :0], ids, mask, queries)
    torch.testing.assert_close(features, text_alone, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("t", [1, 2])
def test_a_batch_of_two_instructions_equals_each_alone(backbone, t):
    """Only the instructions differ, so that a row that reads the other's is found out."""
    texts = ("push it", "lift the red block")
    images, ids, mask, queries = inputs(backbone, t=t, v=2, texts=texts)
    images, queries = images[:1].expand_as(images), queries[:1].expand_as(queries)
    together = backbone(images, ids, mask, queries)
    assert (together[0] - together[1]).abs().max() > 1e-3
    for row, tokens in enumerate(backbone.tokenize(list(texts))):
        own = torch.tensor([tokens])
        alone = backbone(images[:1], own, torch.ones_like(own, dtype=torch.bool), queries[:1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_and_the_queries_get_a_gradient(name):
    backbone = tiny(name)
    *batch, queries = inputs(backbone)
    queries = torch.zeros_like(queries).requires_grad_()
    grads = gradients(backbone, *batch, queries)
    assert [key for key, grad in grads.items() if grad is None or not grad.isfinite().all()] == []
    assert queries.grad.abs().max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_keeps_less_and_changes_no_gradient(name):
    found = {}
    for choice in ("none", "attention", "every_n:2", "full"):
        backbone = tiny(name, checkpointing=choice)
        found[choice] = gradients_and_bytes(backbone, *inputs(backbone))
    wanted, kept = found["none"][0], {choice: size for choice, (_, size) in found.items()}
    assert kept["full"] < kept["every_n:2"] < kept["none"]
    assert kept["full"] < kept["attention"] < kept["none"]
    for choice, (grads, _) in found.items():
        assert grads.keys() == wanted.keys()
        for key in wanted:
            if wanted[key] is not None:
                torch.testing.assert_close(grads[key], wanted[key], rtol=0, atol=0, msg=f"{choice} {key}")


def gradients_and_bytes(backbone, *batch):
    """Return the gradients, and the bytes of activations that wait for the backward pass."""
    kept, weights = {}, {p.untyped_storage().data_ptr() for p in backbone.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, so that no other takes its place
        return tensor

    backbone.train()
    torch.manual_seed(2)  # Kosmos-2 has dropout
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = backbone(*batch).square().mean()
    loss.backward()
    return {key: p.grad for key, p in backbone.named_parameters()}, sum(size for size, _ in kept.values())


WITHOUT_LAST_MLP = {"florence2", "flamingo_upstream"}  # BART's has no module of its own; this one pools over all tokens


@pytest.mark.parametrize("name", NAMES)
def test_the_last_mlp_reads_the_queries_alone_and_changes_no_feature(name):
    backbone = tiny(name)
    images, ids, mask, queries = inputs(backbone, v=2, q=8)  # a few rows alone are multiplied by another kernel
    seen, features, grads = [], {}, {}
    if backbone.last_mlp is None:
        assert name in WITHOUT_LAST_MLP
        return
    inner = backbone.last_mlp._forward
    backbone.last_mlp._forward = lambda *tokens: seen.append(tokens[0].shape[1]) or inner(*tokens)
    only = backbone.last_mlp.only
    for is_whole in (False, True):
        backbone.last_mlp.only = (lambda places: only(None)) if is_whole else only
        torch.manual_seed(0)
        backbone.eval()
        features[is_whole] = backbone(images, ids, mask, queries)
        features[is_whole].square().sum().backward()
        grads[is_whole] = {key: p.grad for key, p in backbone.named_parameters() if p.grad is not None}
        backbone.zero_grad()
    if name not in WITHOUT_LAST_MLP:
        assert seen[0] == queries.shape[1] * queries.shape[2] < seen[1]
    assert torch.equal(features[False], features[True])
    for key, grad in grads[True].items():
        torch.testing.assert_close(grads[False][key], grad, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize("choice", ["", "all", "every_n", "every_n:0", "every_n:-1", "every_n:1.5", "True"])
def test_a_way_of_checkpointing_that_does_not_exist_is_refused_with_those_that_do(choice):
    with pytest.raises(UserError, match=rf"checkpointing={choice} does not exist: write none, attention, full"):
        Checkpointing.parse(choice)


def test_numbers_of_trained_and_frozen_parameters_are_logged(caplog):
    with caplog.at_level(logging.INFO, "robovlms"):
        backbone = tiny("nano", freeze_embeddings=True)
    frozen = backbone.embedding.weight.numel()
    rest = sum(p.numel() for p in backbone.parameters()) - frozen
    assert f"nano: {rest / 1e6:.1f} M parameters are trained, {frozen / 1e6:.1f} M frozen" in caplog.text


def test_nano_refuses_another_model_and_an_attention_it_has_not(tmp_path):
    tiny("kosmos").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"backbone=nano reads 'nano' checkpoints, but .* holds a 'kosmos-2' model"):
        BACKBONES.get("nano").from_config(config("nano", checkpoint=str(tmp_path)))
    with pytest.raises(ValueError, match=r"attn_implementation=eager does not fit backbone=nano\. Options: sdpa"):
        tiny("nano", attn_implementation="eager")


COMPILE = """
import sys, torch
from test_backbones import inputs, tiny
torch.set_num_threads(1)
for name in sys.argv[1:]:
    torch._dynamo.reset()
    backbone = tiny(name)
    batch = inputs(backbone, v=2)
    with torch.no_grad():
        backbone(*batch)  # transformers' first call takes a lock, which breaks a graph
    backbone.train()
    features = []
    for model in (backbone, torch.compile(backbone, fullgraph=True, backend="eager")):
        torch.manual_seed(0)  # Kosmos-2 has dropout
        features.append(model(*batch))
    torch.testing.assert_close(*features, rtol=0, atol=1e-5, msg=name)
    features[1].sum().backward()
"""


OTHERS = sorted({*NAMES} - {*COMPILED, *UNCOMPILED})


@pytest.mark.parametrize(
    "names",
    [pytest.param(COMPILED, marks=pytest.mark.slow), pytest.param(OTHERS, marks=pytest.mark.extended)],
    ids=["first", "others"],
)
def test_torch_compile_makes_one_graph_of_the_forward(names):
    here = Path(__file__).parent  # a process of its own: dynamo cannot look through the shape checks of the others
    run = subprocess.run([sys.executable, "-c", COMPILE, *names], cwd=here, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


@torch.no_grad()
def test_bfloat16_arithmetic_stays_close(backbone):
    batch = inputs(backbone, t=2, v=2)
    exact = backbone(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = backbone(*batch)
    assert rounded.isfinite().all()
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["vision", "text", "embeddings"])
def test_freezing_a_part_freezes_that_part_alone(name, part):
    free, frozen = tiny(name), tiny(name, **{f"freeze_{part}": True})
    named = {id(p) for module in frozen.parts()[part] for p in module.parameters()}
    assert named
    before = dict(free.named_parameters())
    for key, p in frozen.named_parameters():
        assert p.requires_grad == (before[key].requires_grad and id(p) not in named), key
    assert all(grad is not None for grad in gradients(frozen, *inputs(frozen)).values())


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shown", [None, [[True, False], [False, True]]], ids=["all", "some views"])
def test_what_is_read_frame_by_frame_or_query_by_query_is_what_is_read_at_once(name, shown):
    backbone = tiny(name)
    if backbone.new_cache() is None:
        pytest.skip("this decoder reads everything again")
    images, ids, mask, queries = inputs(backbone, t=3, v=2, q=2)
    image = backbone.encode(images)
    view_mask = None if shown is None else torch.tensor(shown)
    whole = backbone.read(image, ids, mask, queries, view_mask=view_mask)
    kv_cache = backbone.new_cache()
    for i in range(3):
        features = backbone.read(image[:, i : i + 1], ids, mask, queries[:, i : i + 1, :1], kv_cache, view_mask)
        more = backbone.read(image[:, :1, :, :0], ids[:, :0], mask[:, :0], queries[:, i : i + 1, 1:], kv_cache)
        torch.testing.assert_close(torch.cat([features, more], dim=2), whole[:, i : i + 1], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_parallel_queries_see_each_other_within_their_frame_alone(name):
    backbone = tiny(name)
    batch = inputs(backbone, t=2, q=3)
    if not backbone.can_parallel:
        with pytest.raises(ValueError, match=r"head\.parallel=true needs queries that see each other"):
            backbone.enable_bidirectional_queries()
        return
    backbone.enable_bidirectional_queries()
    features = backbone(*batch)
    changed = batch[3].clone()
    changed[:, -1, -1] *= -1
    moved = backbone(*batch[:3], changed)
    torch.testing.assert_close(moved[:, :-1], features[:, :-1], rtol=0, atol=1e-5)
    assert (moved[:, -1, 0] - features[:, -1, 0]).abs().max() > 1e-4
