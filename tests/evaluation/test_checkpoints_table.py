"""The table over the checkpoints of a run: what is best, and what that is worth."""

from robovlms.evaluation.analysis.checkpoints import CheckpointRow, best_checkpoint, format_checkpoints, table_cells


def row(step, successes, trials=10, lengths=None):
    mean = successes / trials
    overall = {"successes": successes, "trials": trials, "mean": mean, "low": 0.1, "high": 0.9}
    chains = None if lengths is None else {"rates": [overall] * 5, "average_length": lengths, "low": 1.0, "high": 4.0}
    return CheckpointRow(step, f"step_{step}", overall | {"steps_to_success": None, "errors": 0}, chains)


def test_the_best_has_the_highest_rate_and_the_earliest_of_equals_is_taken():
    assert best_checkpoint([row(10, 3), row(20, 7), row(30, 7)]).step == 20
    assert best_checkpoint([row(10, 9, lengths=1.5), row(20, 1, lengths=2.5)]).step == 20  # chains: average length


def test_the_best_of_several_is_flagged_and_an_only_one_is_not():
    assert [cells[-1] for cells in table_cells([row(10, 3), row(20, 7), row(30, 1)])] == ["", "best of 3", ""]
    assert [cells[-1] for cells in table_cells([row(10, 3)])] == [""]
    assert table_cells([row(10, 3, lengths=2.5), row(20, 1, lengths=1.0)])[0][-1] == (
        "average length 2.50 of 5 (1.00 .. 4.00), best of 2"
    )


def test_the_table_is_markdown_with_a_sentence_on_what_a_best_of_many_is_worth():
    *table, empty, note = format_checkpoints([row(1000, 3), row(20_000, 7)]).splitlines()
    assert table == [
        "|  step | success |  mean |  95 % interval | steps to success |           |",
        "| ----: | ------: | ----: | -------------: | ---------------: | --------: |",
        "|  1000 |    3/10 | 30.0% | 10.0% .. 90.0% |                - |           |",
        "| 20000 |    7/10 | 70.0% | 10.0% .. 90.0% |                - | best of 2 |",
    ]
    assert empty == ""
    assert note.startswith("The best of 2 checkpoints is that of step 20000. It was chosen by these very episodes")
    assert "best" not in format_checkpoints([row(1000, 3)])
