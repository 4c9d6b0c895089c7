"""What torch.compile makes of every family's policy is what docs/performance.md says."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from robovlms.policy.graphs.compiling import repeated_layers
from robovlms.registry import BACKBONES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
FIRST = {"nano", "kosmos", "paligemma", "qwen2_5_vl"}


def families():
    """Return all, those of which only one kind is tested without being asked for as such."""
    return [
        pytest.param(name, marks=pytest.mark.slow if name in FIRST else pytest.mark.extended)
        for name in BACKBONES.names()
    ]


@pytest.mark.parametrize("family", families())
def test_the_graphs_of_a_familys_policy_are_those_of_the_table(family):
    command = [sys.executable, str(ROOT / "benchmarks" / "graphs.py"), family]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)  # shapes are not checked
    assert run.returncode == 0, run.stderr
    header, _, row = run.stdout.splitlines()
    page = PAGE.read_text(encoding="utf-8").splitlines()
    assert header in page
    assert row in page


@pytest.mark.parametrize("family", BACKBONES.names())
def test_what_is_compiled_layer_by_layer_is_what_a_forward_calls(family):
    backbone = BACKBONES.get(family).tiny()
    layers = repeated_layers(backbone)
    assert layers
    assert not any(isinstance(layer, nn.ModuleList) for layer in layers)  # has no forward to compile
