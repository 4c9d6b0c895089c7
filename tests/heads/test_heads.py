"""The contract every action head keeps."""

import pytest
import torch

from robovlms.config.choices import ArmLoss
from robovlms.heads.base import HeadSizes, Prefix, masked_mean
from robovlms.heads.fast_tokenizer import hold
from robovlms.heads.schemas.diffusion import DiffusionHeadConfig
from robovlms.heads.schemas.fast import FastHeadConfig
from robovlms.heads.schemas.flow import FlowHeadConfig
from robovlms.heads.schemas.gpt import GPTHeadConfig
from robovlms.heads.schemas.lstm import LSTMHeadConfig
from robovlms.heads.schemas.mlp import MLPHeadConfig
from robovlms.heads.schemas.tokens import TokensHeadConfig
from robovlms.registry import HEADS

B, W, K, A, D = 2, 3, 4, 7, 16
CONFIGS = {
    "diffusion": DiffusionHeadConfig(
        name="diffusion", loss=ArmLoss.mse, hidden_dim=32, num_layers=2, num_heads=4, num_train_steps=20, num_steps=20
    ),
    "flow": FlowHeadConfig(name="flow", loss=ArmLoss.mse, hidden_dim=32, num_layers=2, num_heads=4),
    "fast": FastHeadConfig(name="fast", vocab_size=300),
    "gpt": GPTHeadConfig(name="gpt", hidden_dim=32, num_layers=2, num_heads=4),
    "lstm": LSTMHeadConfig(name="lstm", hidden_dim=32, num_layers=2),
    "mlp": MLPHeadConfig(name="mlp", hidden_dim=32),
    "mlp_plain": MLPHeadConfig(name="mlp", hidden_dim=256, plain=True),
    "tokens": TokensHeadConfig(name="tokens"),
    "tokens_parallel": TokensHeadConfig(name="tokens", parallel=True),
    "tokens_continuous": TokensHeadConfig(name="tokens", parallel=True, discrete=False, loss=ArmLoss.l1),
}
NAMES = list(CONFIGS)


LONGER = {  # a way to learn, or many words: steps, top learning rate
    "diffusion": (1000, 4e-3),
    "flow": (600, 6e-3),
    **dict.fromkeys(["fast", "tokens", "tokens_parallel"], (1500, 3e-2)),
}


def make_head(name, **changes):
    torch.manual_seed(0)
    config = type(CONFIGS[name])(**{**vars(CONFIGS[name]), **changes})
    head = HEADS.get(config.name)(config, HeadSizes(feature_dim=D, action_dim=A, window_size=W, chunk_size=K))
    if head.needs_chunks:
        _, actions, mask = make_batch()
        head.calibrate(hold(actions, mask).flatten(0, 1).double().numpy())
    return head


class Answers:
    """Stands for the backbone: whatever is asked, the answers are these features."""

    def __init__(self, features):
        self.features, self.asked = features, 0

    def __call__(self, queries, behind=False):
        self.asked = self.asked * behind + queries.shape[2]
        last = min(self.asked, self.features.shape[2])
        return self.features[:, :, last - queries.shape[2] : last]


def num_queries(name):
    if name == "fast":
        _, actions, mask = make_batch()
        return make_head(name).queries(B, W, actions, mask).shape[2]
    return K * A if CONFIGS[name].name == "tokens" else 1


def make_batch(q=1):
    generator = torch.Generator().manual_seed(1)
    arm = torch.rand(B, W, K, A - 1, generator=generator) * 2 - 1
    gripper = torch.where(torch.rand(B, W, K, 1, generator=generator) > 0.5, 1.0, -1.0)
    mask = torch.ones(B, W, K, dtype=torch.bool)
    mask[:, :, -1] = False
    features = torch.randn(B, W, q, D, generator=generator)
    return features, torch.cat([arm, gripper], dim=-1), mask


def test_every_head_is_tested():
    assert {config.name for config in CONFIGS.values()} == set(HEADS.names())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("q", [1, 2])
def test_actions_have_the_chunks_shape_and_range(name, q):
    if num_queries(name) > 1:
        if q > 1:
            with pytest.raises(ValueError, match=r"head\.num_queries=2: .* set it to 1"):
                make_head(name, num_queries=q)
            return
        q = num_queries(name)
    head = make_head(name, **({} if num_queries(name) > 1 else {"num_queries": q}))
    features, actions, mask = make_batch(q)
    assert head.queries(B, W, actions, mask).shape == (B, W, q, D)
    actions = head.act(Answers(features), B, W)
    assert actions.shape == (B, K, A)
    assert actions[..., :-1].abs().max() <= 1
    assert set(actions[..., -1].unique().tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("name", NAMES)
def test_masked_steps_never_move_the_loss(name):
    head = make_head(name).eval()  # a flow head draws the same noise every time
    features, actions, mask = make_batch(num_queries(name))
    changed = torch.where(mask[..., None], actions, -actions)
    for key, value in head.loss(features, actions, mask).items():
        assert value == head.loss(features, changed, mask)[key], key


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("diffusion", "flow")])  # drawn by micro-batch
def test_a_batch_is_the_mean_of_its_rows_by_their_real_steps(name):
    head = make_head(name)
    features, actions, mask = make_batch(64)
    mask[0, 0, 1:] = False
    mask[1, 2] = False

    def loss(rows):
        q = head.queries(len(actions[rows]), W, actions[rows], mask[rows]).shape[2]  # fast: its chunks differ in length
        return head.loss(features[rows, :, :q], actions[rows], mask[rows])

    whole, rows = loss(slice(None)), [loss(slice(i, i + 1)) for i in range(B)]
    shares = mask.flatten(1).sum(1) / mask.sum()
    for key, value in whole.items():
        torch.testing.assert_close(value, sum(share * row[key] for share, row in zip(shares, rows, strict=True)))


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_reaches_every_parameter_and_the_features(name):
    head = make_head(name)
    features, actions, mask = make_batch(num_queries(name))
    inputs = features + head.queries(B, W, actions, mask)
    head.loss(inputs.requires_grad_(), actions, mask)["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_one_batch_can_be_learned_by_heart(name):
    head = make_head(name)
    features, actions, mask = make_batch(num_queries(name))
    steps, top = LONGER.get(name, (200, 3e-3))
    optimizer = torch.optim.AdamW(head.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = top * (1 - step / steps)
        losses = head.loss(features, actions, mask)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    acted = head.eval().act(Answers(features), B, W)
    bound = 0.1 if name in ("diffusion", "fast") else 0.05  # one samples, the other rounds
    real = mask[:, -1]
    assert (acted - actions[:, -1])[real].abs().mean() < bound
    assert losses.get("gripper_accuracy", losses.get("token_accuracy")) == 1


def test_the_query_starts_at_zero_and_is_shared_by_all_frames():
    head = make_head("lstm", num_queries=2)
    assert head.query.shape == (D,)
    assert not head.query.any()


@pytest.mark.parametrize("name", ["gpt", "lstm"])
def test_a_head_with_memory_looks_back_and_never_ahead(name):
    head = make_head(name)
    features, _, _ = make_batch()
    changed = features.clone()
    changed[:, -1] += 1
    torch.testing.assert_close(head.decode(features)[0][:, :-1], head.decode(changed)[0][:, :-1])
    assert not torch.allclose(head.decode(features)[0][:, -1], head.decode(changed)[0][:, -1])
    changed = features.clone()
    changed[:, 0] += 1
    assert not torch.allclose(head.decode(features)[0][:, -1], head.decode(changed)[0][:, -1])


def test_a_gpt_head_whose_width_its_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"head\.hidden_dim=30 x .* must be a multiple of head\.num_heads=4"):
        make_head("gpt", hidden_dim=30)


@pytest.mark.parametrize(("loss", "value"), [(ArmLoss.huber, 0.125), (ArmLoss.mse, 0.25), (ArmLoss.l1, 0.5)])
def test_the_loss_is_arm_plus_a_hundredth_of_the_gripper(loss, value):
    head = make_head("mlp", loss=loss)
    for decoder in (head.arm, head.gripper):
        torch.nn.init.zeros_(decoder[-1].weight)
        torch.nn.init.zeros_(decoder[-1].bias)
    features, actions, mask = make_batch()
    actions[..., :-1] = 0.5  # the head says tanh(0) = 0 and a gripper logit of 0
    losses = head.loss(features, actions, mask)
    torch.testing.assert_close(losses["arm"], torch.tensor(value))
    torch.testing.assert_close(losses["gripper"], torch.tensor(2.0).log())
    torch.testing.assert_close(losses["loss"], value + 0.01 * torch.tensor(2.0).log())


def test_parameter_counts_are_upstreams():
    config = LSTMHeadConfig(name="lstm")
    head = HEADS.get("lstm")(config, HeadSizes(feature_dim=2048, action_dim=7, window_size=16, chunk_size=10))
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(head.lstm) == 4 * 1024 * (2048 + 1024 + 2) + 3 * 4 * 1024 * (2048 + 2)  # 37.8 M
    sizes = [(1024, 1024), (1024, 512), (512, 256), (256, 60)]
    assert count(head.arm) == sum(i * o + o for i, o in sizes)


def test_masked_mean_of_nothing_is_zero():
    assert masked_mean(torch.ones(1, 1, 2), torch.zeros(1, 1, 2, dtype=torch.bool)) == 0


@pytest.mark.parametrize("name", ["mlp", "flow", "diffusion", "tokens_continuous"])
def test_entries_of_the_arm_are_weighed(name):
    features, actions, mask = make_batch(num_queries(name))
    losses = {}
    for weights in ([], [1.0] * 6, [2.0] * 6, [1.0] + [0.0] * 5, [0.0] + [1.0] * 5):
        losses[tuple(weights)] = make_head(name, arm_weights=weights).eval().loss(features, actions, mask)["arm"]
    alike = list(losses.values())[:3]
    torch.testing.assert_close(alike[0], alike[1])
    torch.testing.assert_close(alike[0], alike[2])
    first, others = list(losses.values())[3:]
    torch.testing.assert_close((first + 5 * others) / 6, alike[0])
    assert not torch.isclose(first, others)
    with pytest.raises(ValueError, match=r"head\.arm_weights=\[1\.0\] must be 6 numbers"):
        make_head(name, arm_weights=[1.0]).loss(features, actions, mask)


@pytest.mark.parametrize("name", [name for name in NAMES if HEADS.get(CONFIGS[name].name).supports_prefix])
def test_a_plan_is_kept_where_it_weighs_and_the_rest_goes_on_from_it(name):
    head = make_head(name).eval()
    features, _, _ = make_batch()
    free = head.act(Answers(features), B, W)
    prefix = Prefix(torch.full((B, K, A - 1), 0.3), torch.tensor([1.0, 1.0, 0.5, 0.0]))
    planned = head.act(Answers(features), B, W, prefix)
    torch.testing.assert_close(planned[:, :2, :-1], torch.full((B, 2, A - 1), 0.3))
    assert not torch.allclose(planned[:, 3, :-1], free[:, 3, :-1])  # it saw what was planned before it
    torch.testing.assert_close(head.act(Answers(features), B, W, Prefix(prefix.arm, torch.zeros(K))), free)
