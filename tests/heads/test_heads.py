"""The contract every action head keeps, and what single heads promise beside it."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from small_heads import small_head

from robovlms.config.choices import ArmLoss
from robovlms.config.fields import check_fields
from robovlms.heads.base import HeadSizes, Prefix, Targets, masked_mean
from robovlms.heads.fast_tokenizer import hold
from robovlms.heads.schemas.lstm import LSTMHeadConfig
from robovlms.registry import HEADS

B, W, K, A, D = 2, 3, 4, 7, 16
VARIANTS = {  # further ways to set a head up
    "mlp_plain": ("mlp", {"plain": True, "hidden_dim": 256}),
    "tokens_parallel": ("tokens", {"parallel": True}),
    "tokens_continuous": ("tokens", {"parallel": True, "discrete": False, "loss": ArmLoss.l1}),
}
NAMES = [*HEADS.names(), *VARIANTS]
LONGER = {  # a way to learn, or many words: steps, top learning rate
    "diffusion": (1000, 4e-3),
    "flow": (600, 6e-3),
    **dict.fromkeys(["fast", "tokens", "tokens_parallel"], (1500, 3e-2)),
}
LACKING = torch.tensor([[True] * A, [True, False, True, True, False, True, False]])  # the second row's data


CONFIGS = {name: small_head(name) for name in HEADS.names()}
CONFIGS |= {name: small_head(head, **changes) for name, (head, changes) in VARIANTS.items()}


def make_head(name, **changes):
    torch.manual_seed(0)
    config = replace(CONFIGS[name], **changes)
    check_fields(config, "head")
    head = HEADS.get(config.name)(
        config, HeadSizes(feature_dim=D, action_dim=A, binary=(A - 1,), window_size=W, chunk_size=K)
    )
    if head.needs_chunks:
        actions, mask = make_actions()
        head.calibrate(list(hold(actions, mask).flatten(0, 1).double().numpy()))
    return head


class Answers:
    """Stands for the backbone: whatever is asked, the answers are these features."""

    def __init__(self, features):
        self.features, self.asked = features, 0

    def __call__(self, queries, behind=False):
        self.asked = self.asked * behind + queries.shape[2]
        last = min(self.asked, self.features.shape[2])
        return self.features[:, :, last - queries.shape[2] : last]


def make_actions():
    generator = torch.Generator().manual_seed(1)
    arm = torch.rand(B, W, K, A - 1, generator=generator) * 2 - 1
    gripper = torch.where(torch.rand(B, W, K, 1, generator=generator) > 0.5, 1.0, -1.0)
    mask = torch.ones(B, W, K, dtype=torch.bool)
    mask[:, :, -1] = False
    return torch.cat([arm, gripper], dim=-1), mask


def make_targets(**changes):
    actions, mask = make_actions()
    targets = Targets(**{"actions": actions, "mask": mask, "seeds": torch.arange(B), **changes})
    return replace(targets, ids=encoder()(targets.actions, targets.mask, targets.action_dims))


@cache
def encoder():
    """Return what a loader writes targets with, for the one head that reads them."""
    return make_head("fast").encoder()


def make_features(head, targets):
    """Return features for every query that a head asks."""
    q = head.queries(B, W, targets).shape[2]
    return torch.randn(B, W, q, D, generator=torch.Generator().manual_seed(2))


def rows_of(targets, rows):
    action_dims = None if targets.action_dims is None else targets.action_dims[rows]
    return Targets(
        actions=targets.actions[rows],
        mask=targets.mask[rows],
        action_dims=action_dims,
        seeds=targets.seeds[rows],
        ids=targets.ids[rows],
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_queries", [1, 2])
def test_actions_have_the_chunks_shape_and_range(name, num_queries):
    try:
        head = make_head(name, num_queries=num_queries)
    except ValueError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert re.search(rf"head\.num_queries={num_queries}: .*, set it to 1", refused)
        assert num_queries > 1
        return
    features = make_features(head, make_targets())
    actions = head.act(Answers(features), B, W)
    assert actions.shape == (B, K, A)
    assert actions[..., :-1].abs().max() <= 1
    assert set(actions[..., -1].unique().tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("name", NAMES)
def test_masked_steps_never_move_the_loss(name):
    head, targets = make_head(name), make_targets()
    features = make_features(head, targets)
    changed = make_targets(actions=torch.where(targets.mask[..., None], targets.actions, -targets.actions))
    for key, value in head.loss(features, targets).items():
        assert value == head.loss(features, changed)[key], key


@pytest.mark.parametrize("name", NAMES)
def test_what_a_sample_does_not_record_moves_neither_loss_nor_gradient(name):
    head = make_head(name)
    plain = make_targets()
    results = []
    for stray in (0.0, 0.7, -1.0, torch.nan):
        targets = make_targets(actions=plain.actions.masked_fill(~LACKING[:, None, None], stray), action_dims=LACKING)
        inputs = make_features(head, targets) + head.queries(B, W, targets)
        losses = head.loss(inputs, targets)
        head.zero_grad()
        losses["loss"].backward()
        results.append((losses, [p.grad.clone() for p in head.parameters() if p.grad is not None]))
    (first, gradients), *others = results
    assert first["loss"].isfinite()
    for losses, others_gradients in others:
        assert all(torch.equal(value, losses[key]) for key, value in first.items())
        assert all(map(torch.equal, gradients, others_gradients))


@pytest.mark.parametrize("name", [name for name in NAMES if HEADS.get(CONFIGS[name].name).supports_prefix])
def test_the_noise_at_what_a_sample_does_not_record_reaches_no_weight(name):
    head, targets = make_head(name), rows_of(make_targets(action_dims=LACKING), slice(1, 2))
    head.loss(torch.randn(1, W, 1, D), targets)["loss"].backward()
    used = LACKING[1, :-1]
    for gradient in (head.read_actions.weight.grad.T, head.estimate_out.weight.grad):
        assert not gradient[~used].any()
        assert gradient[used].any(dim=1).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("action_dims", [None, LACKING], ids=["all", "lacking"])
def test_a_batch_is_the_mean_of_its_rows_by_their_real_steps(name, action_dims):
    head, targets = make_head(name), make_targets(action_dims=action_dims)
    targets.mask[0, 0, 1:] = False
    targets.mask[1, 2] = False
    features = torch.randn(B, W, 64, D, generator=torch.Generator().manual_seed(2))

    def loss(rows):
        mine = rows_of(targets, rows)
        q = head.queries(len(mine.mask), W, mine).shape[2]  # fast: its chunks differ in length
        return head.loss(features[rows, :, :q], mine)

    whole, rows = loss(slice(None)), [loss(slice(i, i + 1)) for i in range(B)]
    shares = targets.mask.flatten(1).sum(1) / targets.mask.sum()
    for key, value in whole.items():
        if key != "gripper_accuracy" or action_dims is None:  # a mean over the steps with a gripper alone
            torch.testing.assert_close(value, sum(share * row[key] for share, row in zip(shares, rows, strict=True)))


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_reaches_every_parameter_and_the_features(name):
    head, targets = make_head(name), make_targets()
    features = make_features(head, targets)
    inputs = features.requires_grad_() + head.queries(B, W, targets)
    head.loss(inputs, targets)["loss"].backward()
    assert features.grad.any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def learn(head, features, targets, steps, top):
    """Take steps at a rate that falls from `top` to 0, set the head to evaluation, return its last losses."""
    optimizer = torch.optim.AdamW(head.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = top * (1 - step / steps)
        losses = head.loss(features, replace(targets, seeds=targets.seeds + B * step))
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    head.eval()
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_one_batch_can_be_learned_by_heart_where_it_is_recorded(name):
    head, targets = make_head(name), make_targets(action_dims=LACKING)
    features = make_features(head, targets)
    losses = learn(head, features, targets, *LONGER.get(name, (200, 3e-3)))
    acted = head.act(Answers(features), B, W, action_dims=LACKING)
    bound = 0.1 if name in ("diffusion", "fast") else 0.05  # one samples, the other rounds
    real = targets.mask[:, -1, :, None] & LACKING[:, None]
    assert (acted - targets.actions[:, -1])[real].abs().mean() < bound
    assert losses.get("gripper_accuracy", losses.get("token_accuracy")) == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_row_acts_as_it_does_alone_whatever_it_lacks(name):
    head = make_head(name).eval()
    q = 64 if head.reads_again else head.queries(B, W).shape[2]
    features = torch.randn(B, W, q, D, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        both = head.act(Answers(features), B, W, action_dims=LACKING)
        alone = [head.act(Answers(features[i : i + 1]), 1, W, action_dims=LACKING[i : i + 1])[0] for i in range(B)]
        whole = head.act(Answers(features[:1]), 1, W)[0]
    torch.testing.assert_close(both, torch.stack(alone))
    torch.testing.assert_close(both[0], whole)


def test_the_query_starts_at_zero_and_is_shared_by_all_frames():
    head = make_head("lstm", num_queries=2)
    assert head.query.shape == (D,)
    assert not head.query.any()


@pytest.mark.parametrize("name", ["gpt", "lstm"])
def test_a_head_with_memory_looks_back_and_never_ahead(name):
    head = make_head(name)
    features = torch.randn(B, W, 1, D)
    changed = features.clone()
    changed[:, -1] += 1
    torch.testing.assert_close(head.decode(features)[0][:, :-1], head.decode(changed)[0][:, :-1])
    assert not torch.allclose(head.decode(features)[0][:, -1], head.decode(changed)[0][:, -1])
    changed = features.clone()
    changed[:, 0] += 1
    assert not torch.allclose(head.decode(features)[0][:, -1], head.decode(changed)[0][:, -1])


def test_a_gpt_head_whose_width_its_heads_do_not_divide_is_refused():
    with pytest.raises(
        ValueError, match=r"head\.hidden_dim x head\.num_queries=30 must be a multiple of head\.num_heads=4"
    ):
        check_fields(replace(CONFIGS["gpt"], hidden_dim=30), "head")


@pytest.mark.parametrize(("loss", "value"), [(ArmLoss.huber, 0.125), (ArmLoss.mse, 0.25), (ArmLoss.l1, 0.5)])
def test_the_loss_is_arm_plus_a_hundredth_of_the_gripper(loss, value):
    head = make_head("mlp", loss=loss)
    for decoder in (head.arm, head.gripper):
        torch.nn.init.zeros_(decoder[-1].weight)
        torch.nn.init.zeros_(decoder[-1].bias)
    targets = make_targets()
    targets.actions[..., :-1] = 0.5  # the head says tanh(0) = 0 and a gripper logit of 0
    losses = head.loss(torch.randn(B, W, 1, D), targets)
    torch.testing.assert_close(losses["arm"], torch.tensor(value))
    torch.testing.assert_close(losses["gripper"], torch.tensor(2.0).log())
    torch.testing.assert_close(losses["loss"], value + 0.01 * torch.tensor(2.0).log())


def test_parameter_counts_are_upstreams():
    config = LSTMHeadConfig(name="lstm")
    head = HEADS.get("lstm")(
        config, HeadSizes(feature_dim=2048, action_dim=7, binary=(6,), window_size=16, chunk_size=10)
    )
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(head.lstm) == 4 * 1024 * (2048 + 1024 + 2) + 3 * 4 * 1024 * (2048 + 2)  # 37.8 M
    sizes = [(1024, 1024), (1024, 512), (512, 256), (256, 60)]
    assert count(head.arm) == sum(i * o + o for i, o in sizes)


def test_masked_mean_of_nothing_is_zero():
    assert masked_mean(torch.ones(1, 1, 2), torch.zeros(1, 1, 2, dtype=torch.bool)) == 0


@pytest.mark.parametrize("name", ["mlp", "flow", "diffusion", "tokens_continuous"])
def test_entries_of_the_arm_are_weighed(name):
    targets = make_targets()
    features = make_features(make_head(name), targets)
    losses = {}
    for weights in ([], [1.0] * 6, [2.0] * 6, [1.0] + [0.0] * 5, [0.0] + [1.0] * 5):
        losses[tuple(weights)] = make_head(name, arm_weights=weights).loss(features, targets)["arm"]
    alike = list(losses.values())[:3]
    torch.testing.assert_close(alike[0], alike[1])
    torch.testing.assert_close(alike[0], alike[2])
    first, others = list(losses.values())[3:]
    torch.testing.assert_close((first + 5 * others) / 6, alike[0])
    assert not torch.isclose(first, others)
    with pytest.raises(ValueError, match=r"head\.arm_weights=\[1\.0\] must be 6 numbers"):
        make_head(name, arm_weights=[1.0]).loss(features, targets)


@pytest.mark.parametrize("name", [name for name in NAMES if HEADS.get(CONFIGS[name].name).supports_prefix])
def test_a_plan_is_kept_where_it_weighs_and_the_rest_goes_on_from_it(name):
    head = make_head(name)
    targets = make_targets()
    features = make_features(head, targets)
    learn(head, features, targets, steps=50, top=3e-3)  # enough not to be at the bounds everywhere
    free = head.act(Answers(features), B, W)
    prefix = Prefix(torch.full((B, K, A), 0.3), torch.tensor([1.0, 1.0, 0.5, 0.0]).expand(B, K))
    planned = head.act(Answers(features), B, W, prefix)
    torch.testing.assert_close(planned[:, :2, :-1], torch.full((B, 2, A - 1), 0.3))
    assert not torch.allclose(planned[:, 3, :-1], free[:, 3, :-1])  # it saw what was planned before it
    torch.testing.assert_close(head.act(Answers(features), B, W, Prefix(prefix.actions, torch.zeros(B, K))), free)
