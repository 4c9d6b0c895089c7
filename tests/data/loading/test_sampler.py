import time

import numpy as np
import pytest

from robovlms.data.loading.sampler import StepSampler, accumulation_steps, permute


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000])
def test_permute_reaches_every_number_once(size):
    assert sorted(permute(np.arange(size), size, key=3).tolist()) == list(range(size))


def test_a_mixture_draws_what_its_sources_draw_one_by_one():
    sizes, weights = [1, 2, 3, 50, 1000], [3.0, 1.0, 1.0, 2.0, 5.0]
    sampler = StepSampler(sizes, weights=weights, batch_size=16, device_batch_size=16, seed=5)
    draws = [draw for step in range(80) for draw in sampler.step_draws(step)]
    starts = np.cumsum([0, *sizes])
    parts = np.searchsorted(starts, [draw.window for draw in draws], side="right") - 1
    for part, size in enumerate(sizes):
        mine = [draw.window - starts[part] for draw, of in zip(draws, parts, strict=True) if of == part]
        keys = [5 << 64 | part << 32 | epoch for epoch in range(len(mine) // size + 1)]
        expected = [place for key in keys for place in permute(np.arange(size), size, key).tolist()]
        assert mine == expected[: len(mine)]


def test_the_order_is_the_one_that_saved_runs_go_on_with():
    sampler = StepSampler([5, 1000, 70_000], weights=[1.0, 2.0, 3.0], batch_size=4, device_batch_size=4, seed=3)
    assert sampler.step_draws(0) == [(494, 0), (4345, 1), (60661, 2), (59918, 3)]
    late = [(53978, 400_000), (48054, 400_001), (2, 400_002), (55052, 400_003)]
    assert sampler.step_draws(100_000) == late


def test_permute_depends_on_the_key_and_needs_no_memory():
    started = time.perf_counter()
    first, second = (permute(np.arange(128), 10_000_000, key=key) for key in (0, 1))
    assert time.perf_counter() - started < 0.5
    assert (first != second).any()


def test_permute_looks_random():
    positions = permute(np.arange(1000), 1000, key=0)
    assert abs(np.corrcoef(positions, np.arange(1000))[0, 1]) < 0.1
    assert abs(np.corrcoef(positions[:-1], positions[1:])[0, 1]) < 0.1


def draws(steps, **changes):
    options = {"batch_size": 8, "device_batch_size": 2, "seed": 5, **changes}
    sampler = StepSampler([30], **options)
    iterator = iter(sampler)
    return [[next(iterator) for _ in range(sampler.accumulation)] for _ in range(steps)]


def test_an_epoch_repeats_nothing():
    seen = [draw.window for step in draws(3) for micro in step for draw in micro]
    assert len(seen) == len(set(seen)) == 24


def test_all_numbers_of_ranks_see_the_same_global_batches():
    one = [[draw for micro in step for draw in micro] for step in draws(5)]
    for world_size in (2, 4):
        ranks = [draws(5, world_size=world_size, rank=rank) for rank in range(world_size)]
        for step in range(5):
            assert [draw for rank in ranks for micro in rank[step] for draw in micro] == one[step]


def test_resuming_gives_the_exact_next_samples():
    assert draws(3, start_step=4) == draws(7)[4:]


def test_a_batch_larger_than_the_data_set_names_the_option():
    with pytest.raises(ValueError, match="set batch_size=5 or less"):
        StepSampler([5], batch_size=8, device_batch_size=8)


def test_a_batch_that_does_not_divide_names_what_does():
    with pytest.raises(ValueError, match=r"device_batch_size to one of \[1, 2, 4\]"):
        accumulation_steps(8, 3, 2)
    assert accumulation_steps(128, 4, 32) == 1
    assert accumulation_steps(128, 4, 1) == 32
