import pytest

from robovlms.evaluation.statistics import Rate, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # R: prop.test(k, n, correct = FALSE)$conf.int
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_the_interval_has_the_published_values(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=6e-5)


def test_more_confidence_asks_for_a_wider_interval():
    low, high = wilson_interval(8, 10)
    lower, higher = wilson_interval(8, 10, confidence=0.99)
    assert lower < low < 0.8 < high < higher


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_what_is_no_rate_is_refused(successes, trials):
    with pytest.raises(ValueError, match=f"{successes} successes of {trials} trials"):
        wilson_interval(successes, trials)
    with pytest.raises(ValueError, match="no rate"):
        Rate(successes, trials)


def test_a_confidence_in_percent_is_refused():
    with pytest.raises(ValueError, match=r"e\.g\. 0\.95"):
        wilson_interval(8, 10, confidence=95.0)


def test_a_rate_knows_its_mean_and_interval():
    rate = Rate(8, 10)
    assert rate.mean == 0.8
    assert rate.interval == wilson_interval(8, 10)
