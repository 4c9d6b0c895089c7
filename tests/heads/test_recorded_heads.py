"""Where one binary gripper is the last entry, every head starts, learns and acts as it did before grippers could stand
anywhere: numbers recorded from the code of before.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from test_heads import LACKING, NAMES, Answers, B, W, make_features, make_head, make_targets

from robovlms.heads.base import Prefix

FILE = Path(__file__).parents[1] / "old_checkpoints" / "heads.json"
CASES = {"whole": {}, "lacking": {"action_dims": LACKING}}
WEIGHTS = [1.0, 2.0, 0.0, 0.5, 1.0, 3.0]


def numbers(name, case):
    """Return what a head starts with, its losses, the size of its gradient, and what it does."""
    changes = CASES[case]
    weighted = {"arm_weights": WEIGHTS} if changes else {}
    head, targets = make_head(name, **weighted), make_targets(**changes)
    start = hashlib.sha256()
    for key, value in head.state_dict().items():
        start.update(key.encode() + value.numpy().tobytes())
    features = make_features(head, targets).requires_grad_()
    losses = head.loss(features, targets)
    losses["loss"].backward()
    gradient = sum(each.grad.double().square().sum() for each in head.parameters() if each.grad is not None)
    head.eval()
    with torch.no_grad():
        actions = head.act(Answers(features.detach()), B, W, action_dims=changes.get("action_dims"))
        prefix = {}
        if head.supports_prefix:
            given = Prefix(targets.actions[:, -1], torch.tensor([[1, 0.5, 0, 0]] * B))
            prefix = {"prefix": head.act(Answers(features.detach()), B, W, given).flatten().tolist()}
    return {
        "start": start.hexdigest(),
        "losses": {key: value.item() for key, value in losses.items()},
        "gradient": float(gradient + features.grad.double().square().sum()),
        "actions": actions.flatten().tolist(),
        **prefix,
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_one_binary_gripper_behind_the_arm_is_what_it_was_before_grippers_could_stand_anywhere(name, case):
    recorded = json.loads(FILE.read_text(encoding="utf-8"))
    expected, found = recorded["heads"][f"{name} {case}"], numbers(name, case)
    assert found["start"] == expected["start"], "parameters, their order or what they start with"
    if torch.backends.cpu.get_cpu_capability() == recorded["cpu"]:
        assert found == expected, "to the last digit"
    for key in expected.keys() - {"start"}:
        assert found[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-5)
