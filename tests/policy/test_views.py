"""Which camera's picture stands where, and what a sample without one of them is read as."""

import numpy as np
import pytest
import torch
from test_parity import NORMALIZER, SOURCE, VIEWS, A, K, W, make_policy, observe

from robovlms.config.choices import Structure
from robovlms.config.policy import WindowConfig
from robovlms.data.loading.loader import Collator
from robovlms.data.loading.sampler import Draw
from robovlms.images.processor import Processor
from robovlms.policy.policy import VLAPolicy
from robovlms.policy.runner import PolicyRunner
from robovlms.types import Sample

STRUCTURES = [Structure.policy_head, Structure.interleaved]


def sample(number, views):
    frames = [observe(10 * number + i).frames for i in range(W)]
    return Sample(
        frames={view: np.stack([frame[view] for frame in frames]) for view in views},
        actions=np.zeros((W + K - 1, A), np.float32),
        action_mask=np.ones(W + K - 1, bool),
        instruction=f"do {number}",
    )


def collate(policy, *samples):
    collator = Collator(policy.processor, [NORMALIZER], WindowConfig(window_size=W, chunk_size=K))
    return collator([(each, Draw(i, i)) for i, each in enumerate(samples)])


@pytest.mark.parametrize("backbone_name", ["nano", "kosmos"])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("lacking", VIEWS)
def test_a_sample_without_a_camera_is_read_as_by_a_policy_that_has_only_the_other(backbone_name, structure, lacking):
    policy = make_policy(backbone_name, structure, "mlp")
    (other,) = (view for view in VIEWS if view != lacking)
    narrow = VLAPolicy(policy.backbone, policy.head, structure, Processor(policy.backbone, [other], max_text_tokens=64))
    mixed = policy.predict(collate(policy, sample(0, VIEWS), sample(1, [other])))
    alone = narrow.predict(collate(narrow, sample(1, [other])))
    torch.testing.assert_close(mixed[1:], alone, rtol=0, atol=1e-5)
    both = policy.predict(collate(policy, sample(0, VIEWS)))
    torch.testing.assert_close(mixed[:1], both, rtol=0, atol=1e-5)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_batch_of_two_instructions_acts_as_each_alone(structure):
    policy = make_policy("nano", structure, "mlp")
    samples = [sample(0, VIEWS), sample(0, VIEWS)]
    samples[1].instruction = "push the red block away"
    together = policy.predict(collate(policy, *samples))
    assert (together[0] - together[1]).abs().max() > 1e-4
    for row, each in enumerate(samples):
        torch.testing.assert_close(together[row : row + 1], policy.predict(collate(policy, each)), rtol=0, atol=1e-5)


def test_cameras_are_found_by_name_and_not_by_their_order():
    policy = make_policy("nano", Structure.policy_head, "mlp")
    plain, turned = observe(0), observe(0)
    turned.frames = dict(reversed(turned.frames.items()))
    exchanged = observe(0)
    exchanged.frames = dict(zip(exchanged.frames, reversed(exchanged.frames.values()), strict=True))
    actions = [PolicyRunner(policy, NORMALIZER, SOURCE, window_size=W).step(o) for o in (plain, turned, exchanged)]
    np.testing.assert_array_equal(actions[1], actions[0])
    assert np.abs(actions[2] - actions[0]).max() > 1e-4
