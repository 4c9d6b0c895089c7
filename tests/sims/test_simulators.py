"""What every simulator promises, for every one that is registered and installed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from composing import completed, composed

from robovlms.actions.contract import check_layout
from robovlms.errors import UserError
from robovlms.registry import SIMULATORS
from robovlms.types import Observation


@pytest.fixture(scope="module", params=SIMULATORS.names())
def made(request):
    """A simulator with the YAML's own settings and the first task of its suite, and what builds others of its kind."""
    config = completed(composed(f"sim={request.param}", "data.root=/nowhere")).sim
    try:
        kind = SIMULATORS.get(request.param)
    except ImportError as error:
        pytest.skip(str(error))
    tasks = kind(config).tasks()
    simulator = kind(replace(config, tasks=[tasks[0].name]))
    yield kind, config, simulator
    simulator.close()


def still(simulator) -> np.ndarray:
    """Return an action that asks the arm for nothing and keeps the gripper open."""
    return np.array([0] * (len(simulator.contract.names) - 1) + [1], np.float32)


def check_observation(observation: Observation, instruction: str) -> None:
    assert observation.instruction == instruction
    assert observation.frames
    for frame in observation.frames.values():
        assert frame.dtype == np.uint8
        assert frame.ndim == 3
        assert frame.shape[-1] == 3
        assert frame.flags.c_contiguous
        assert frame.std() > 1  # something is to be seen
    if observation.proprio is not None:
        assert observation.proprio.dtype == np.float32
        assert np.isfinite(observation.proprio).all()


def test_the_contract_of_a_simulator_does_not_contradict_itself(made):
    _, config, simulator = made
    check_layout(simulator.contract)
    assert simulator.contract.control_hz == config.control_hz


def test_tasks_have_names_and_instructions_of_their_own(made):
    kind, config, simulator = made
    tasks = kind(config).tasks()
    assert len({task.name for task in tasks}) == len(tasks)
    assert all(task.instruction.strip() for task in tasks)
    assert all(task.opposite in {other.name for other in tasks} for task in tasks if task.opposite)
    assert [task.name for task in simulator.tasks()] == [tasks[0].name]


def test_an_unknown_task_is_refused_with_the_nearest_spelling(made):
    kind, config, _ = made
    name = kind(config).tasks()[0].name
    with pytest.raises(UserError, match=f"sim.tasks has '{name[:-1]}'.*Did you mean '"):
        kind(replace(config, tasks=[name[:-1]]))


def test_an_episode_depends_on_its_seed_alone(made):
    _, _, simulator = made
    (task,) = simulator.tasks()
    first = simulator.reset(task, 3)
    simulator.step(still(simulator))
    simulator.reset(task, 4)
    again = simulator.reset(task, 3)
    check_observation(first, task.instruction)
    for view, frame in first.frames.items():
        np.testing.assert_array_equal(frame, again.frames[view])
    if first.proprio is not None:
        np.testing.assert_array_equal(first.proprio, again.proprio)


def test_another_instruction_changes_the_words_and_nothing_else(made):
    _, _, simulator = made
    (task,) = simulator.tasks()
    own, other = simulator.reset(task, 3), simulator.reset(task, 3, "do something else")
    assert other.instruction == "do something else"
    np.testing.assert_array_equal(next(iter(own.frames.values())), next(iter(other.frames.values())))


def test_an_idle_arm_solves_nothing_and_the_episode_ends_at_its_limit(made):
    kind, config, simulator = made
    short = kind(replace(config, tasks=[simulator.tasks()[0].name], max_steps=3))
    try:
        check_observation(short.reset(short.tasks()[0], 0), short.tasks()[0].instruction)
        steps = [short.step(still(short)) for _ in range(3)]
        assert [step.success for step in steps] == [False] * 3
        assert [step.done for step in steps] == [False, False, True]
        for step in steps:
            check_observation(step.observation, short.tasks()[0].instruction)
    finally:
        short.close()


def test_an_action_of_the_wrong_size_is_refused_with_the_names_of_its_entries(made):
    _, _, simulator = made
    simulator.reset(simulator.tasks()[0], 0)
    with pytest.raises(UserError, match=simulator.contract.names[0]):
        simulator.step(np.zeros(len(simulator.contract.names) + 1, np.float32))


def test_an_expert_speaks_the_simulators_actions(made):
    _, _, simulator = made
    simulator.reset(simulator.tasks()[0], 0)
    try:
        action = simulator.expert(simulator.tasks()[0])
    except NotImplementedError:
        pytest.skip("no scripted expert")
    assert action.shape == (len(simulator.contract.names),)
    assert action.dtype == np.float32
    assert action[-1] in (-1, 1)


def test_closing_twice_does_no_harm_and_the_next_episode_starts_anew(made):
    _, _, simulator = made
    simulator.close()
    simulator.close()
    check_observation(simulator.reset(simulator.tasks()[0], 0), simulator.tasks()[0].instruction)
