import json
from pathlib import Path

import pytest
from test_results import chain, result

from robovlms.evaluation.analysis.certificate import certify, content_digest
from robovlms.evaluation.analysis.checkpoints import CheckpointRow, flag_best, format_checkpoints
from robovlms.evaluation.results import summarize, write_results
from robovlms.evaluation.statistics import bootstrap_mean, wilson_interval


def evaluated(folder, step, successes, trials=20):
    folder = folder / str(step)
    folder.mkdir()
    played = [result("open", i, i < successes, 10) for i in range(trials)]
    results = certify(
        summarize(played, config={}, versions={}),
        checkpoint=folder, checkpoint_digest="", renderer="", device="cpu", argv=[],
    )  # fmt: skip
    write_results(folder / "results.json", results)
    return CheckpointRow.of(step, folder, results)


def test_the_interval_of_the_best_of_several_is_corrected_for_the_choice(tmp_path):
    rows = [evaluated(tmp_path, step, successes) for step, successes in [(1000, 9), (2000, 15), (3000, 12)]]
    low, high = rows[1].corrected(3)
    assert (low, high) == pytest.approx(wilson_interval(15, 20, confidence=1 - 0.05 / 3))
    assert low < rows[1].overall["low"] < rows[1].overall["high"] < high
    assert f"95 % interval is {low:.1%} .. {high:.1%} when corrected for the choice" in format_checkpoints(rows)


def test_a_single_checkpoint_was_not_chosen(tmp_path):
    row = evaluated(tmp_path, 7, 15)
    assert row.corrected(1) == pytest.approx((row.overall["low"], row.overall["high"]))
    assert "corrected" not in format_checkpoints([row])


def test_of_chains_the_average_length_is_corrected(tmp_path):
    chains = [chain(0), chain(1, 10), chain(2, 10, 20), chain(3, 10, 20, 30), chain(4, 10, 20, 30)]
    row = CheckpointRow.of(1, tmp_path, summarize(chains, config={}, versions={}))
    assert row.corrected(4) == pytest.approx(bootstrap_mean([0, 1, 2, 3, 3], 1 - 0.05 / 4))


def test_results_that_are_flagged_keep_a_certificate_that_holds(tmp_path):
    rows = [evaluated(tmp_path, step, successes) for step, successes in [(1000, 9), (2000, 15)]]
    flag_best(rows)
    found = [json.loads((Path(row.folder) / "results.json").read_text()) for row in rows]
    assert [each.get("chosen_from", 1) for each in found] == [1, 2]
    assert all(content_digest(each) == each["certificate"]["content_digest"] for each in found)
