"""Grippers anywhere in an action, any number of them: what every head makes of them."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from test_heads import CONFIGS, LACKING, NAMES, Answers, B, D, K, W

from robovlms.heads.base import HeadSizes, Prefix, Targets
from robovlms.heads.layers.split import ActionSplit
from robovlms.registry import HEADS

A = 7
SPLITS = [(), (6,), (0,), (2, 5), (5, 6), (0, 3, 6)]
SLOTS = {"tokens", "tokens_parallel", "tokens_continuous", "fast"}  # entries have a place in a sequence of their own


@cache
def chunks(binary):
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(B, W, K, A, generator=generator) * 2 - 1
    is_binary = torch.tensor([i in binary for i in range(A)])
    return torch.where(is_binary, torch.where(values > 0, 1.0, -1.0), values)


def make(name, binary):
    torch.manual_seed(0)
    sizes = HeadSizes(feature_dim=D, action_dim=A, binary=binary, window_size=W, chunk_size=K)
    head = HEADS.get(CONFIGS[name].name)(CONFIGS[name], sizes)
    if head.needs_chunks:
        head.calibrate(list(chunks(binary).flatten(0, 1).double().numpy()))
    return head.eval()


def targets_of(head, actions, action_dims=None):
    mask = torch.ones(B, W, K, dtype=torch.bool)
    encoder = head.encoder()
    ids = None if encoder is None else encoder(actions, mask, action_dims)
    return Targets(actions=actions, mask=mask, action_dims=action_dims, seeds=torch.arange(B), ids=ids)


def features_of(head, targets):
    q = head.queries(B, W, targets).shape[2]
    return torch.randn(B, W, q, D, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("binary", SPLITS)
def test_a_split_takes_actions_apart_and_puts_them_together_again(binary):
    split, actions = ActionSplit(A, binary), chunks(binary)
    arm, grippers = split.continuous(actions), split.binary(actions)
    assert (
        (arm.shape[-1], grippers.shape[-1])
        == (split.num_continuous, split.num_binary)
        == (A - len(binary), len(binary))
    )
    torch.testing.assert_close(split.join(arm, grippers), actions, rtol=0, atol=0)
    torch.testing.assert_close(split.continuous(actions.mT, dim=-2), arm.mT)
    assert not split.state_dict(), "it is no part of a checkpoint"


def test_entries_side_by_side_are_views_and_an_order_that_is_right_is_left():
    for binary in ((), (6,), (0,)):
        split, actions = ActionSplit(A, binary), chunks(())
        assert split.continuous(actions).untyped_storage().data_ptr() == actions.untyped_storage().data_ptr()
    arm = torch.zeros(2, 7)
    assert ActionSplit(A, ()).join(arm, None) is arm


@pytest.mark.parametrize("binary", SPLITS)
@pytest.mark.parametrize("name", NAMES)
def test_every_head_learns_and_decides_grippers_wherever_they_stand(name, binary):
    head, actions = make(name, binary), chunks(binary)
    has_gripper = [key for key, _ in head.named_parameters() if "gripper" in key]
    if name not in ("tokens", "tokens_parallel", "fast"):
        assert bool(has_gripper) == bool(binary)
    recorded = torch.ones(B, A, dtype=torch.bool)
    for action_dims in (None, recorded, LACKING):
        targets = targets_of(head, actions, action_dims)
        losses = head.loss(features_of(head, targets), targets)
        assert all(value.isfinite() for value in losses.values())
        assert ("gripper_accuracy" in losses) == (bool(binary) and name != "fast")
        losses["loss"].backward()
        found = head.act(Answers(features_of(head, targets)), B, W, action_dims=action_dims)
        assert found.shape == (B, K, A)
        assert set(found[..., list(binary)].unique().tolist()) <= {-1.0, 1.0}
        arm = [i for i in range(A) if i not in binary]
        assert found[..., arm].abs().max() <= 1
        assert len(found[..., arm].unique()) > 2


@pytest.mark.parametrize("binary", [(0,), (2, 5), (0, 3, 6)])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SLOTS])
def test_where_an_entry_stands_changes_nothing_but_where_it_stands(name, binary):
    order = [*(i for i in range(A) if i not in binary), *binary]
    last = tuple(range(A - len(binary), A))
    there, behind = make(name, binary), make(name, last)
    for dims in (None, LACKING):
        ours = targets_of(there, chunks(binary), dims)
        theirs = targets_of(behind, chunks(binary)[..., order], None if dims is None else dims[:, order])
        features = features_of(there, ours)
        assert there.loss(features, ours) == behind.loss(features, theirs)
        options = {}
        if there.supports_prefix:
            options = {"prefix": Prefix(chunks(binary)[:, 0], torch.tensor([[1.0, 0.5, 0, 0]] * B))}
        found = there.act(Answers(features), B, W, action_dims=dims, **options)
        if options:
            options = {"prefix": Prefix(chunks(binary)[:, 0][..., order], options["prefix"].weight)}
        expected = behind.act(
            Answers(features), B, W, action_dims=ours.action_dims if dims is None else dims[:, order], **options
        )
        assert torch.equal(found[..., order], expected)


def test_the_grippers_term_is_a_mean_over_the_grippers_that_are_recorded():
    head, actions = make("mlp", (2, 5)), chunks((2, 5))
    features = features_of(head, targets_of(head, actions))
    alone = []
    for gripper in (2, 5):
        dims = torch.ones(B, A, dtype=torch.bool)
        dims[:, 7 - gripper] = False
        alone.append(head.loss(features, targets_of(head, actions, dims))["gripper"])
    both = head.loss(features, targets_of(head, actions))["gripper"]
    torch.testing.assert_close(both, sum(alone) / 2)
    none = torch.ones(B, A, dtype=torch.bool)
    none[:, [2, 5]] = False
    assert head.loss(features, targets_of(head, actions, none))["gripper"] == 0
