from functools import cache

import numpy as np
import pytest

from robovlms.evaluation.analysis.paired import sign_test
from robovlms.evaluation.analysis.sequential import BETS, Bets


def looks(differences):
    return [Bets(differences[:count]).p_value() for count in range(1, len(differences) + 1)]


def test_against_equal_successes_the_capital_is_a_mixture_of_likelihood_ratios():
    wins, losses, ties = 9, 2, 20
    ratios = [
        np.mean((1 + side * BETS) ** wins * (1 - side * BETS) ** losses) / 2 for side in (1, -1)
    ]  # of chances (1 + bet) / 2 against 1/2, which pairs that do not differ leave as they are
    p_value = Bets([1] * wins + [-1] * losses + [0] * ties).p_value()
    assert p_value == pytest.approx(1 / max(ratios))


def test_what_is_looked_at_once_alone_would_be_found_sooner():
    assert next(count for count in range(1, 20) if sign_test(count, 0) <= 0.05) == 6
    assert next(count for count in range(1, 20) if Bets([1] * count).p_value() <= 0.05) == 8


@pytest.mark.slow
def test_of_equal_policies_hardly_any_is_called_better_though_it_is_looked_at_after_every_episode():
    random = np.random.default_rng(0)
    once, always, test = 0, 0, cache(sign_test)
    for _ in range(200):
        differences = random.choice([-1, 0, 1], p=[0.2, 0.6, 0.2], size=120).tolist()
        wins, losses = (np.cumsum(np.equal(differences, sign)) for sign in (1, -1))
        always += min(looks(differences)) <= 0.05
        once += any(test(w, n) <= 0.05 for w, n in zip(wins.tolist(), losses.tolist(), strict=True))
    assert always <= 10  # of 200: 5 %
    assert once > 20  # what repeated looks do to a test that is made for one


def test_the_interval_holds_the_mean_at_all_looks_of_nearly_all_evaluations():
    random = np.random.default_rng(1)
    missed = 0
    for _ in range(100):
        lengths = random.choice([-0.4, 0.0, 0.2, 0.6], p=[0.2, 0.3, 0.3, 0.2], size=60).tolist()  # chains; mean 0.1
        intervals = [Bets(lengths[:count]).interval() for count in range(5, 61, 5)]
        missed += not all(low <= 0.1 <= high for low, high in intervals)
    assert missed <= 5


def test_order_does_not_matter_and_sides_are_alike():
    differences = [1.0, 1.0, -1.0, 0.0, 0.5, 0.0, 1.0]
    assert Bets(differences[::-1]).interval() == Bets(differences).interval()
    low, high = Bets(differences).interval()
    assert Bets([-each for each in differences]).interval() == pytest.approx((-high, -low), abs=1e-6)


def test_the_interval_leaves_out_zero_where_the_test_finds_a_difference():
    for wins in range(2, 30):
        bets = Bets([1] * wins + [-1] * 3 + [0] * 10)
        low, _ = bets.interval()
        assert (low > 0) == (bets.p_value() < 0.05)


def test_nothing_is_known_before_the_first_pair():
    assert Bets([]).p_value() == 1.0
    assert Bets([]).interval() == (-1.0, 1.0)
    assert Bets([]).pairs_needed(0.05) is None


def test_the_number_of_pairs_that_is_needed_is_that_at_which_the_test_is_passed():
    once = [1, 1, 1, -1, 0, 0, 0, 0]
    assert Bets(once * 8).p_value() > 0.05
    needed = Bets(once).pairs_needed(0.05)
    assert Bets(once * (needed // 8)).p_value() > 0.05 >= Bets(once * (needed // 8 + 1)).p_value()
    assert Bets([1, -1, 0]).pairs_needed(0.05) is None


def test_what_is_no_difference_is_refused():
    with pytest.raises(ValueError, match="from -2 to 3: scale"):
        Bets([-2, 0, 3])
