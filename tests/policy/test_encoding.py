"""The vision tower, the largest part of a step, runs once for every picture that is read."""

import pytest
import torch
from test_parity import NORMALIZER, SOURCE, VIEWS, A, K, W, make_policy, observe

from robovlms.config.choices import Structure
from robovlms.policy.acting import BatchedPolicy
from robovlms.policy.runner import PolicyRunner
from robovlms.training.validation import validate
from robovlms.types import Batch


def encoded(policy):
    """Return a list that grows by the number of pictures at every run of the vision tower."""
    counts = []
    policy.backbone.stem.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    return counts


def batch_of(policy, w, b=2):
    generator = torch.Generator().manual_seed(0)
    text_ids, text_mask = policy.processor.text(["open the drawer", "close it"][:b])
    return Batch(
        frames={view: torch.randint(256, (b, w, 24, 24, 3), generator=generator, dtype=torch.uint8) for view in VIEWS},
        text_ids=text_ids,
        text_mask=text_mask,
        actions=torch.rand(b, w, K, A, generator=generator) * 2 - 1,
        action_mask=torch.ones(b, w, K, dtype=torch.bool),
        source=torch.zeros(b, dtype=torch.long),
        seeds=torch.arange(b),
    )


@pytest.mark.parametrize(
    ("structure", "head", "w"),
    [(Structure.one_step, "mlp", 1), (Structure.one_step, "tokens", 1), (Structure.policy_head, "flow", W),
     (Structure.interleaved, "mlp", W)],
)  # fmt: skip
def test_validation_encodes_every_picture_once_and_measures_what_training_and_acting_compute(structure, head, w):
    policy = make_policy("nano", structure, head)
    batch, counts = batch_of(policy, w), encoded(policy)
    losses, chunk = policy.assess(batch)
    assert counts == [2 * w * len(VIEWS)]
    assert torch.equal(chunk, policy.predict(batch))
    with torch.no_grad():
        again = policy(batch)
    assert losses.keys() == again.keys()
    assert all(torch.equal(losses[name], again[name]) for name in losses)
    counts.clear()
    validate(policy, [batch, batch], torch.zeros(1, *batch.actions.shape[2:]), ["only"], lambda sums: sums)
    assert counts == [2 * w * len(VIEWS)] * 2


def test_one_step_encodes_only_the_frames_that_it_is_asked_about():
    policy = make_policy("nano", Structure.one_step, "mlp")
    counts, runner = encoded(policy), PolicyRunner(policy, NORMALIZER, SOURCE, window_size=1, execute_steps=4)
    for step in range(9):
        runner.step(observe(step))
    assert counts == [len(VIEWS)] * 3
    BatchedPolicy(policy, 1).act([runner.memory])
    assert len(counts) == 3, "the newest frame is encoded already"
