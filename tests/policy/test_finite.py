"""No robot is sent what is not a number."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_parity import DATA, NAMES, NORMALIZER, ROWS, SOURCE, W, make_policy, observe

from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.statistics import Statistics
from robovlms.config.choices import Execution, Structure
from robovlms.errors import UserError
from robovlms.policy.runner import PolicyRunner


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["backbone.norm.weight", "head.query", "proprio.mean"])
def test_weights_that_are_not_finite_are_named_before_anything_moves(name, value):
    policy = make_policy("nano", Structure.policy_head, "mlp", proprio=True)
    policy.state_dict()[name][0] = value
    with pytest.raises(UserError, match=rf"1 of the policy's weights are not finite, e\.g\. {name}: "):
        PolicyRunner(policy, NORMALIZER, SOURCE, window_size=W)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_named_before_anything_moves(value):
    stats = Statistics.compute(ROWS)
    broken = replace(stats, max=[*stats.max[:2], value, *stats.max[3:]])
    normalizer = ActionNormalizer(DATA.normalization, broken, NAMES, [len(NAMES) - 1])
    with pytest.raises(UserError, match=r"statistics of dz are not finite: action_stats\.json"):
        PolicyRunner(make_policy("nano", Structure.policy_head, "mlp"), normalizer, SOURCE, window_size=W)


@pytest.mark.parametrize("execution", [Execution.chunk, Execution.ensemble])
def test_actions_that_are_not_finite_are_named_and_not_sent(execution):
    policy = make_policy("nano", Structure.policy_head, "mlp")
    runner = PolicyRunner(policy, NORMALIZER, SOURCE, window_size=W, execution=execution)
    assert np.isfinite(runner.step(observe(0))).all()
    with torch.no_grad():
        policy.head.arm[-1].bias[1] = float("nan")  # dy of the first action
    with pytest.raises(FloatingPointError, match=r"not finite at step 1, in dy: nothing was sent"):
        runner.step(observe(1))
