import pytest
from test_results import chain, result

from robovlms.evaluation.analysis.checkpoints import best, over_time, table_cells
from robovlms.evaluation.results import summarize
from robovlms.evaluation.statistics import wilson_interval


def evaluated(successes, trials=20):
    return summarize([result("open", i, i < successes, 10) for i in range(trials)], config={}, versions={})


def test_the_best_of_several_is_flagged_and_its_interval_corrected_for_the_choice():
    checkpoints = over_time([(2000, evaluated(15)), (1000, evaluated(9)), (3000, evaluated(12))])
    assert [(each.step, each.score.mean) for each in checkpoints] == [(1000, 0.45), (2000, 0.75), (3000, 0.6)]
    chosen = best(checkpoints)
    assert chosen.step == 2000
    assert chosen.corrected[1:] == pytest.approx(wilson_interval(15, 20, confidence=1 - 0.05 / 3))
    assert chosen.corrected.low < chosen.score.low < chosen.score.high < chosen.corrected.high
    assert table_cells(checkpoints)[1] == [
        "2,000", "20", "75.0%", "53.1% .. 88.8%", "best of 3: 48.2% .. 90.5% when corrected for the choice",
    ]  # fmt: skip
    assert [row[-1] for row in table_cells(checkpoints)[::2]] == ["", ""]


def test_a_single_checkpoint_was_not_chosen():
    (only,) = over_time([(7, evaluated(15))])
    assert only.corrected == pytest.approx(only.score)
    assert table_cells([only])[0][-1] == ""


def test_of_equals_the_latest_is_best_and_chains_are_told_by_their_length():
    chains = summarize([chain(0), chain(1, 10), chain(2, 10, 20), chain(3, 10, 20, 30)], config={}, versions={})
    checkpoints = over_time([(1, chains), (2, chains)])
    assert best(checkpoints).step == 2
    assert table_cells(checkpoints)[0][:4] == ["1", "4", "1.50", "0.50 .. 2.50"]
