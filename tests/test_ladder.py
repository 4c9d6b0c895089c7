"""The ladder of benchmarks/ladder.py: a row that fails, or has no time left, says so, and never stops the others."""

import argparse
import json
import subprocess
import sys

import ladder
import ladder_models
import pytest
import torch
from ladder_models import Sizes

from robovlms.config.choices import ModelSize, Structure
from robovlms.config.policy import BackboneConfig
from robovlms.errors import UserError
from robovlms.policy.graphs import compiling


@pytest.fixture
def rows(tmp_path):
    return ladder.Ladder(argparse.Namespace(tiny=True, device="cpu", seconds=100.0, out=str(tmp_path)))


def written(rows):
    return json.loads((rows.out / "ladder.json").read_text())


def raising(error):
    def measure():
        raise error

    return measure


def out_of_memory():
    try:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    except torch.OutOfMemoryError as error:
        raise UserError("memory ran out while training") from error


@pytest.mark.parametrize("measure", [raising(torch.OutOfMemoryError("CUDA out of memory")), out_of_memory])
def test_out_of_memory_is_a_row_and_no_failure(rows, measure):
    rows.row({"what": "train"}, measure)
    assert "out of memory" in written(rows)[0]["error"]
    assert not rows.has_failed


@pytest.mark.slow
def test_what_fails_is_a_row_the_next_one_is_measured_and_the_exit_status_tells(rows):
    rows.row({"what": "control", "rung": "first"}, raising(ValueError("a | b\nc")))
    assert len(written(rows)) == 1  # before the next row begins
    rows.row({"what": "control", "rung": "second"}, lambda: {"p50_ms": 1.0})
    first, second = written(rows)
    assert "ValueError" in first["error"]
    assert second["p50_ms"] == 1.0
    assert rows.has_failed
    (line,) = (line for line in ladder.table(rows.rows).splitlines() if line.startswith("| - | first"))
    assert line.count("|") == len(ladder.COLUMNS["control"]) + 2


@pytest.mark.parametrize(
    ("losses", "differs"), [([0.2, 0.1, 0.0505], False), ([0.2, 0.1, 0.0515], True), ([0.2, float("nan"), 0.05], True)]
)
def test_losses_that_differ_from_those_of_the_first_row_fail(rows, losses, differs):
    first = {"losses": [0.2, 0.1, 0.05], "grad_norms": [1.0, 1.0, 1.0]}
    assert "error" not in rows.compare("kosmos", "one", first)
    found = rows.compare("kosmos", "two", {"losses": losses, "grad_norms": [1.0, 1.1, 1.0]})
    assert found["compared_with"] == "one"
    assert found["norms_apart"] == pytest.approx(0.1)
    assert ("LOSSES DIFFER" in found.get("error", "")) == differs == rows.has_failed
    assert "error" not in rows.compare("paligemma", "one", first | {"losses": [9.0, 9.0, 9.0]})


def test_what_there_is_no_time_for_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", compiling.BACKEND)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert ladder.main(["--device", "cpu", "--tiny", "--seconds", "0", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "ladder.json").read_text())
    assert len([row for row in found if row["what"] == "train"]) == 11
    assert all(row["skipped"] == "0 s left of --seconds 0" for row in found)
    assert "skipped: 0 s left" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--device", "cpu"], ["--device", "cuda"]])
def test_what_cannot_be_measured_is_refused_at_once(options, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine can")
    with pytest.raises(SystemExit) as refused:
        ladder.main([*options, "--out", str(tmp_path)])
    assert refused.value.code == 2
    assert "--tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "parameters"), [("kosmos", 1.664e9), ("paligemma", 2.924e9), ("qwen2_5_vl", 3.755e9)]
)
def test_models_have_their_published_sizes(model, parameters):
    sizes = Sizes(tiny=False, device="meta")
    config = BackboneConfig(name=model, size=ModelSize.full)
    policy = ladder_models.make_policy(config, Structure.policy_head, sizes, sizes.window)
    assert sum(p.numel() for p in policy.backbone.parameters()) == pytest.approx(parameters, rel=1e-3)
    assert policy.processor.image_spec.size == 224
    text = ladder_models.instruction_of(policy, sizes.tokens(model))
    assert len(policy.backbone.tokenize([policy.backbone.prompt.format(instruction=text)])[0]) == sizes.tokens(model)


@pytest.mark.slow
def test_all_rows_that_a_cpu_can_run_have_equal_losses(tmp_path):
    command = [sys.executable, ladder.__file__, "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)  # alone: types are not checked inside of graphs
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "ladder.json").read_text())
    graphs = [acting.name for acting in ladder.ACTING if "compile=model" in acting.name or "cuda_graph" in acting.name]
    assert [row["rung"] for row in found if "skipped" in row] == graphs
    trained = [row for row in found if row["what"] == "train"]
    assert len(trained) == 11
    assert all(row["losses_apart"] <= 1e-3 and row["windows_per_s"] > 0 for row in trained)
    by_rung = {row["rung"]: row["flops"] for row in trained if row["model"] == "kosmos"}
    assert by_rung["+ last MLP at queries"] < by_rung["+ compile=layers"] == by_rung["bf16_autocast"]
