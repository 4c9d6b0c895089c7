"""What a policy says of itself: one file in every checkpoint, held against its surroundings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from robovlms.errors import UserError
from robovlms.policy.checkpoint import checkpoints, load_policy, save_policy
from robovlms.policy.manifest import new_checkpoint
from robovlms.policy.spec import SPEC, PolicySpec

FOLDER = Path(__file__).parents[1] / "old_checkpoints"


@pytest.fixture(scope="module")
def mixture():
    return load_policy(checkpoints(FOLDER / "mixture")[-1])


def test_a_spec_says_what_a_policy_sees_and_what_its_actions_mean(mixture):
    spec = mixture.spec
    assert spec.views == {"side": 32, "wrist": 32}
    assert (spec.window_size, spec.chunk_size) == (4, 3)
    assert spec.control_hz == {"play": 10.0, "arm": 10.0}
    assert spec.find("arm").contract.names == ["dx", "dy"]
    assert spec.find("play").statistics != spec.find("arm").statistics
    with pytest.raises(UserError, match="source=None: this policy has the sources play, arm"):
        spec.find(None)


def test_a_spec_is_read_as_it_was_written(mixture, tmp_path):
    mixture.spec.save(tmp_path / SPEC)
    assert PolicySpec.load(tmp_path / SPEC) == mixture.spec


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}', '{"version": 2, "name": "x"}'])
def test_a_damaged_spec_is_named(tmp_path, text):
    (tmp_path / SPEC).write_text(text)
    with pytest.raises(UserError, match=SPEC):
        PolicySpec.load(tmp_path / SPEC)


def test_an_environment_that_means_something_else_is_refused_with_both_sides(mixture):
    contract = mixture.spec.find("play").contract
    mixture.spec.check_environment(contract, "the robot", "play")
    with pytest.raises(UserError, match=r"control_hz: policy 10\.0, the robot 20\.0"):
        mixture.spec.check_environment(replace(contract, control_hz=20.0), "the robot", "play")


def test_a_checkpoint_of_other_statistics_than_its_spec_says_is_refused(mixture, tmp_path):
    folder = tmp_path / "step_000002"
    with new_checkpoint(folder) as partial:
        save_policy(partial, mixture)
        stats = json.loads((partial / "action_stats.json").read_text())
        stats["arm"]["action"]["q99"][0] *= 2
        (partial / "action_stats.json").write_text(json.dumps(stats))
    with pytest.raises(UserError, match=r"spec\.json is not of this checkpoint's config\.yaml and action_stats\.json"):
        load_policy(folder)


def test_a_saved_policy_is_loaded_with_the_same_spec(mixture, tmp_path):
    with new_checkpoint(tmp_path / "step_000002") as partial:
        save_policy(partial, mixture)
    assert load_policy(tmp_path / "step_000002").spec == mixture.spec
