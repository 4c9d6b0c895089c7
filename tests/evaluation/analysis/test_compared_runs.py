import pytest
from test_results import result

from robovlms.errors import UserError
from robovlms.evaluation.analysis.comparison import Evaluated, compare_runs
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.sims.base import Episode, Goal


def run(name, successes, *, first=0, simulator="line", choices=1, **conditions):
    """Return a run whose episode i succeeds where `successes` has a 1 at i; its first has the seed `first`."""
    results = tuple(result("open", first + i, mark == "1", 10) for i, mark in enumerate(successes))
    return Evaluated(name=name, simulator=simulator, results=results, conditions=conditions, choices=choices)


def chains(name, lengths):
    goals = tuple(Goal(task=f"task {i}", instruction=f"do {i}") for i in range(5))
    results = tuple(
        EpisodeResult(
            episode=Episode(scene="chain", seed=i, goals=goals, max_steps=9), goal_steps=(3,) * n, steps=9, seconds=1.0
        )
        for i, n in enumerate(lengths)
    )
    return Evaluated(name=name, simulator="calvin", results=results, conditions={})


def test_successes_are_compared_episode_by_episode():
    comparison = compare_runs([run("a", "1110000000"), run("b", "1111111110")])
    assert list(comparison.scores) == ["b", "a"]
    (pair,) = comparison.pairs
    contrast = pair.contrast
    assert (pair.first, pair.second, contrast.wins, contrast.losses) == ("b", "a", 6, 0)
    assert contrast.mean == pytest.approx(0.6)
    assert contrast.p_value == pair.adjusted == pytest.approx(2 / 2**6)
    assert (contrast.low, contrast.high) == pytest.approx((0.1559, 0.8318), abs=1e-4)
    assert pair.better == ("b", "a")
    assert comparison.best == ["b"]


def test_the_same_rates_on_the_same_episodes_may_hide_a_difference_or_none():
    same = compare_runs([run("a", "1111100000"), run("b", "1111100000")]).pairs[0].contrast
    crossed = compare_runs([run("a", "1111100000"), run("b", "0000011111")]).pairs[0].contrast
    assert same.p_value == crossed.p_value == 1.0
    assert same.high < 0.3 < 0.5 < crossed.high  # the less they differ, the better it is known


def test_p_values_are_corrected_for_all_pairs_and_the_set_of_best_holds_all_that_are_not_beaten():
    runs = [run("worst", "0" * 12), run("good", "1" * 7 + "0" * 5), run("best", "1" * 10 + "0" * 2)]
    comparison = compare_runs(runs)
    adjusted = {(pair.first, pair.second): pair.adjusted for pair in comparison.pairs}
    assert adjusted == pytest.approx(
        {("best", "good"): 0.25, ("best", "worst"): 3 * 2 / 2**10, ("good", "worst"): 2 * 2 / 2**7}
    )
    assert comparison.best == ["best", "good"]


def test_chains_are_compared_by_their_lengths():
    comparison = compare_runs([chains("a", [5, 4, 3, 5, 2, 5, 4, 1]), chains("b", [3, 2, 2, 3, 1, 3, 2, 1])])
    contrast = comparison.pairs[0].contrast
    assert comparison.num_goals == 5
    assert comparison.scores["a"].mean == 29 / 8
    assert (contrast.wins, contrast.losses, contrast.mean) == (7, 0, 12 / 8)
    assert contrast.p_value == pytest.approx(2 / 2**7)
    assert 0.8 < contrast.low < 1.5 < contrast.high < 2.2


def test_chains_that_never_differ_are_not_known_to_be_equal():
    contrast = compare_runs([chains("a", [5, 4, 3]), chains("b", [5, 4, 3])]).pairs[0].contrast
    assert contrast.mean == 0
    assert contrast.low < -1 < 1 < contrast.high


def test_runs_on_other_episodes_are_compared_on_those_that_both_have_and_that_is_said():
    comparison = compare_runs([run("a", "1111"), run("b", "0101", first=2)])
    assert comparison.num_episodes == 2
    assert comparison.scores["b"].mean == 0.5
    assert comparison.notes == [
        "a: 2 of its 4 episodes are compared; not all other runs have played the rest.",
        "b: 2 of its 4 episodes are compared; not all other runs have played the rest.",
    ]


@pytest.mark.parametrize("other", [run("b", "11", first=50), run("b", "11", simulator="circle"), run("b", "")])
def test_runs_without_a_common_episode_are_refused_by_name(other):
    with pytest.raises(UserError, match=r"a and b have no episode in common \(line: open, seed 0: 'open'; .*sim\.seed"):
        compare_runs([run("a", "11"), other])


def test_three_runs_that_overlap_by_twos_alone_are_refused():
    with pytest.raises(UserError, match="no episode that all of a, b, c have played"):
        compare_runs([run("a", "11"), run("b", "11", first=1), Evaluated(
            name="c", simulator="line", conditions={}, results=(result("open", 0, True, 3), result("open", 2, True, 3))
        )])  # fmt: skip


def test_other_instructions_than_the_benchmarks_own_are_not_compared():
    own, opposite = result("open", 0, True, 3), result("open", 0, True, 3, language="opposite")
    runs = [Evaluated(name=name, simulator="line", conditions={}, results=(own, opposite)) for name in "ab"]
    assert compare_runs(runs).num_episodes == 1


def test_the_best_of_several_checkpoints_is_flagged_and_held_against_a_higher_bar():
    plain = compare_runs([run("a", "0" * 7), run("b", "1" * 7)])
    chosen = compare_runs([run("a", "0" * 7), run("b", "1" * 7, choices=10)])
    assert plain.best == ["b"]
    assert chosen.best == ["b", "a"]
    assert chosen.pairs[0].adjusted == pytest.approx(10 * plain.pairs[0].adjusted)
    assert chosen.pairs[0].contrast.low < plain.pairs[0].contrast.low
    assert chosen.notes[0].startswith("b is the best of 10 checkpoints")


def test_what_differs_besides_the_policy_is_said():
    runs = [run("a", "11", renderer="egl"), run("b", "11", renderer="osmesa"), run("c", "11")]
    assert compare_runs(runs).notes == ["The runs differ in renderer as well: egl (a), osmesa (b)."]


def test_sequentially_more_is_asked_for_and_the_number_of_episodes_that_will_do_is_foretold():
    runs = [run("a", "0" * 6 + "1"), run("b", "1" * 7)]
    assert compare_runs(runs).best == ["b"]
    early = compare_runs(runs, is_sequential=True)
    assert early.best == ["b", "a"]
    needed = early.pairs[0].contrast.pairs_needed
    assert 8 <= needed <= 12
    late = compare_runs([run("a", "0" * needed), run("b", "1" * needed)], is_sequential=True)
    assert late.best == ["b"]
    assert late.pairs[0].contrast.low > 0
