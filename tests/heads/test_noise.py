"""Random numbers by seed: SplitMix64, uniform and normal, and the same in every batch."""

import numpy as np
import pytest
import torch

from robovlms.data.loading.sampler import sample_seeds
from robovlms.heads.noise import normal, uniform

MASK = 2**64 - 1


def splitmix(state):
    """The published generator in python's whole numbers: state is advanced, then mixed."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 + 12345, -(2**63)])
def test_the_numbers_are_the_published_generators(seed):
    expected = [((splitmix(seed + n * 0x9E3779B97F4A7C15) >> 41) + 0.5) / 2**23 for n in range(6)]
    assert uniform(torch.tensor([seed]), (2, 3)).flatten().tolist() == expected


def test_a_row_is_the_same_in_every_batch_and_streams_differ():
    seeds = torch.from_numpy(sample_seeds(7, range(100)))
    whole = normal(seeds, (4, 3))
    assert torch.equal(normal(seeds[[5, 90]], (4, 3)), whole[[5, 90]])
    assert not (normal(seeds, (4, 3), stream=1) == whole).any()
    assert len(whole.unique()) > 1190


def test_numbers_are_spread_as_they_say_over_seeds_and_within_them():
    for seeds, shape in ((sample_seeds(0, range(20_000)), (1,)), (sample_seeds(1, [3]), (20_000,))):
        drawn = torch.from_numpy(seeds)
        values = uniform(drawn, shape).flatten()
        assert 0 < values.min() < 0.001
        assert 0.999 < values.max() < 1
        assert np.abs(np.sort(values.numpy()) - (np.arange(20_000) + 0.5) / 20_000).max() < 0.0115  # Kolmogorov, 1 %
        gauss = normal(drawn, shape).flatten()
        assert gauss.mean().abs() < 0.02
        assert gauss.std().item() == pytest.approx(1, abs=0.02)
        assert gauss[1:] @ gauss[:-1] / 20_000 == pytest.approx(0, abs=0.02)


def test_seeds_differ_by_run_and_by_sample():
    seeds = np.concatenate([sample_seeds(seed, range(1000)) for seed in (0, 1, 2, 2**40)])
    assert len(np.unique(seeds)) == len(seeds)
    assert (sample_seeds(3, [8, 1]) == sample_seeds(3, range(9))[[8, 1]]).all()
