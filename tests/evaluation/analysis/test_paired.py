import itertools
import math

import pytest

from robovlms.evaluation.analysis.paired import (
    corrected_confidence,
    holm,
    not_beaten,
    sign_test,
    tango_interval,
)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [  # R: binom.test(wins, wins + losses)$p.value
        (0, 0, 1.0),
        (5, 0, 0.0625),
        (6, 0, 0.03125),
        (0, 6, 0.03125),
        (3, 9, 0.14599609375),
        (15, 5, 0.04138946533203125),
        (20, 5, 0.004077315330505371),
        (7, 7, 1.0),
    ],
)
def test_the_sign_test_has_the_values_of_the_binomial_distribution(wins, losses, p):
    assert sign_test(wins, losses) == pytest.approx(p, rel=1e-12)


def test_the_sign_test_counts_every_split_that_is_as_uneven():
    for wins, losses in itertools.product(range(9), repeat=2):
        n, uneven = wins + losses, abs(wins - losses)
        tail = sum(math.comb(n, k) for k in range(n + 1) if abs(n - 2 * k) >= uneven) / 2**n
        assert sign_test(wins, losses) == pytest.approx(tail)


def test_holm_has_the_published_values_and_keeps_the_order():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.5]) == [0.5]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("wins", "losses", "pairs", "low", "high"),
    [  # Fagerland, Lydersen and Laake 2014, table V (airways before and after); then by hand
        (7, 1, 21, 0.026, 0.517),
        (0, 0, 10, -0.2775, 0.2775),
        (10, 0, 10, 0.4449, 1.0),
        (0, 10, 10, -1.0, -0.4449),
    ],
)
def test_the_interval_of_a_difference_has_the_published_values(wins, losses, pairs, low, high):
    assert tango_interval(wins, losses, pairs) == pytest.approx((low, high), abs=6e-4)


def test_no_difference_of_n_pairs_is_known_as_well_as_z_and_n_allow():
    for pairs in (1, 3, 10, 500):
        z2 = 1.959963984540054**2
        low, high = tango_interval(0, 0, pairs)
        assert high == pytest.approx(z2 / (pairs + z2))
        assert low == pytest.approx(-high)


def test_an_interval_holds_the_estimate_is_mirrored_and_inside_its_bounds():
    for pairs in (1, 2, 7, 40):
        for wins in range(pairs + 1):
            for losses in range(pairs + 1 - wins):
                low, high = tango_interval(wins, losses, pairs)
                assert -1 <= low <= (wins - losses) / pairs <= high <= 1
                assert low < high
                assert tango_interval(losses, wins, pairs) == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize("counts", [(1, 0, 0), (3, 3, 5), (-1, 0, 4), (0, -1, 4)])
def test_counts_that_contradict_each_other_are_refused(counts):
    with pytest.raises(ValueError, match="no counts"):
        tango_interval(*counts)
    with pytest.raises(ValueError, match="no counts"):
        sign_test(-1, 0)


def test_the_set_of_best_is_all_that_nothing_beats():
    assert not_beaten("abc", []) == ["a", "b", "c"]
    assert not_beaten("abc", [("b", "a")]) == ["b", "c"]
    assert not_beaten("abc", [("a", "b"), ("a", "c"), ("b", "c")]) == ["a"]


def test_the_interval_of_a_chosen_one_is_as_wide_as_if_all_had_to_hold():
    assert corrected_confidence(1) == pytest.approx(0.95)
    assert corrected_confidence(10) == pytest.approx(0.995)
