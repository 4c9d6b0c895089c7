"""The official chains and initial states, number by number."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from official_calvin import official

from robovlms.sims.calvin.chains import load_chains, starts, task_names
from robovlms.sims.calvin.states import BLOCKS, block_seed, fnv1_32, initial_state, jittered

OFFICIAL_FILE = "c99e041c255df3408ebf3bbb4feea8b407e17e60e7c07d172a6ea7ba6680e8ca"  # SHA-256 of eval_sequences.json
OFFICIAL_SCENES = "1a25eaf9bb3f57459937b95423f2a673e277945064e5c09c9c7cb97b3ff87150"  # of all scenes' float64 numbers
FIRST = (
    "rotate_blue_block_right",
    "move_slider_right",
    "lift_red_block_slider",
    "place_in_slider",
    "turn_off_lightbulb",
)
NEVER_FIRST = {"place_in_slider", "place_in_drawer", "stack_block", "unstack_block"} | {
    f"lift_{colour}_block_drawer" for colour in ("red", "blue", "pink")
}


def test_the_chains_are_those_of_the_official_file() -> None:
    chains = [[chain.condition._asdict(), list(chain.tasks)] for chain in load_chains()]
    assert chains[0][1] == list(FIRST)
    assert hashlib.sha256(json.dumps(chains, indent=4).encode()).hexdigest() == OFFICIAL_FILE


def test_the_hash_is_pyhash_s_and_not_the_textbook_s() -> None:
    assert block_seed(load_chains()[0].condition) == 2138410836  # textbook: 4264316145
    assert fnv1_32("") == 0


def test_all_initial_states_are_the_official_ones() -> None:
    digest = hashlib.sha256()
    for chain in load_chains():
        digest.update(initial_state(chain.condition).scene.tobytes())
    assert digest.hexdigest() == OFFICIAL_SCENES


def test_the_official_function_gives_the_same_initial_states() -> None:
    utils = official("utils")
    for chain in load_chains():
        robot, scene = utils.get_env_state_for_initial_condition(chain.condition._asdict())
        own = initial_state(chain.condition)
        np.testing.assert_array_equal(own.robot, robot)
        np.testing.assert_array_equal(own.scene, scene)


def test_initial_states_leave_the_global_random_state_alone() -> None:
    np.random.seed(3)
    expected = np.random.RandomState(3).uniform()
    initial_state(load_chains()[0].condition)
    assert np.random.uniform() == expected


def test_every_chain_starts_with_a_task_that_its_condition_allows() -> None:
    for chain in load_chains():
        assert chain.condition in starts(chain.tasks[0])


def test_a_task_starts_where_the_official_code_says_it_can() -> None:
    sequences = official("multistep_sequences")
    conditions = {chain.condition for chain in load_chains()}
    assert len(conditions) == 192
    for task, effects in sequences.tasks.items():
        allowed = {at for at in conditions if sequences.valid_task(at._asdict(), effects)}
        assert set(starts(task)) == allowed, task


def test_tasks_that_need_an_earlier_one_have_no_start() -> None:
    assert len(task_names()) == 34
    assert {task for task in task_names() if not starts(task)} == NEVER_FIRST


@pytest.mark.parametrize("task", ["open_drawer", "lift_red_block_slider"])
def test_a_start_beyond_the_official_ones_moves_the_blocks_on_the_table_and_nothing_else(task: str) -> None:
    for seed, condition in enumerate(starts(task)):
        official_state = initial_state(condition)
        moved = jittered(official_state, condition, seed)
        np.testing.assert_array_equal(moved.scene, jittered(official_state, condition, seed).scene)
        changed = np.flatnonzero(moved.scene != official_state.scene)
        on_table = [number for number, place in enumerate(condition[4:7]) if place == "table"]
        assert list(changed) == [BLOCKS + 6 * block + entry for block in on_table for entry in (0, 1, 5)]
        assert np.abs(moved.scene - official_state.scene)[BLOCKS:].reshape(3, 6)[:, :2].max() <= 0.03
