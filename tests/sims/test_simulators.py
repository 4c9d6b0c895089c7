"""What every simulator promises, for every one that is registered and installed."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
from composing import completed, composed

from robovlms.actions.contract import check_layout
from robovlms.errors import UserError
from robovlms.registry import SIMULATORS
from robovlms.types import Observation, SimulatorState


@pytest.fixture(scope="module", params=SIMULATORS.names())
def made(request):
    """A simulator with the YAML's own settings and the first task of its suite, and what builds others of its kind."""
    config = completed(composed(f"sim={request.param}", "data.root=/nowhere")).sim
    with pytest.MonkeyPatch.context() as patch:
        if find_spec(f"recorded_{request.param}"):  # what cannot run here is replayed
            import_module(f"recorded_{request.param}").install(patch)
        try:
            kind = SIMULATORS.get(request.param)
            tasks = kind(config).tasks()
        except ImportError as error:
            pytest.skip(str(error))
        simulator = kind(replace(config, tasks=[tasks[0].name]))
        yield kind, config, simulator
        simulator.close()


def still(simulator) -> np.ndarray:
    """Return an action that asks the arm for nothing and keeps the gripper open."""
    return np.array([0] * (len(simulator.contract.names) - 1) + [1], np.float32)


def begin(simulator, seed=0, instruction=None) -> Observation:
    """Start the first task's episode, with another instruction if there is one."""
    task = simulator.tasks()[0]
    return simulator.reset(simulator.episode(replace(task, instruction=instruction or task.instruction), seed))


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
    _, _, simulator = made
    check_layout(simulator.contract)
    assert simulator.contract.control_hz > 0


def test_what_a_result_depends_on_is_named(made):
    _, _, simulator = made
    assert simulator.renderer
    assert simulator.packages


@pytest.mark.slow
def test_observations_have_the_views_and_proprioception_that_are_promised(made):
    _, _, simulator = made
    observation = begin(simulator)
    assert tuple(observation.frames) == simulator.views
    assert (0 if observation.proprio is None else len(observation.proprio)) == len(simulator.proprio_names)


def test_episodes_are_numbered_and_no_two_are_the_same(made):
    kind, config, _ = made
    few = kind(replace(config, episodes=3, seed=2))
    plan = few.episodes()
    assert len(set(plan)) == len(plan)
    assert {episode.seed for episode in plan} == {2, 3, 4}
    known = {task.name for task in few.tasks()}
    for episode in plan:
        assert episode.max_steps > 0
        assert all(goal.task in known and goal.instruction.strip() for goal in episode.goals)


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


@pytest.mark.slow
def test_an_episode_depends_on_its_seed_alone(made):
    _, _, simulator = made
    (task,) = simulator.tasks()
    first = begin(simulator, 3)
    simulator.step(still(simulator))
    begin(simulator, 4)
    again = begin(simulator, 3)
    check_observation(first, task.instruction)
    for view, frame in first.frames.items():
        np.testing.assert_array_equal(frame, again.frames[view])
    if first.proprio is not None:
        np.testing.assert_array_equal(first.proprio, again.proprio)


def test_another_instruction_changes_the_words_and_nothing_else(made):
    _, _, simulator = made
    own, other = begin(simulator, 3), begin(simulator, 3, "do something else")
    assert other.instruction == "do something else"
    np.testing.assert_array_equal(next(iter(own.frames.values())), next(iter(other.frames.values())))


def test_an_idle_arm_reaches_no_goal_and_keeps_its_instruction(made):
    _, _, simulator = made
    begin(simulator)
    for _ in range(3):
        step = simulator.step(still(simulator))
        assert (step.goals_done, step.done) == (0, False)
        check_observation(step.observation, simulator.tasks()[0].instruction)


def test_an_action_of_the_wrong_size_is_refused_with_the_names_of_its_entries(made):
    _, _, simulator = made
    begin(simulator)
    with pytest.raises(UserError, match=simulator.contract.names[0]):
        simulator.step(np.zeros(len(simulator.contract.names) + 1, np.float32))


def test_an_expert_speaks_the_simulators_actions(made):
    _, _, simulator = made
    begin(simulator)
    try:
        action = simulator.expert(simulator.tasks()[0])
    except NotImplementedError:
        pytest.skip("no scripted expert")
    assert action.shape == (len(simulator.contract.names),)
    assert action.dtype == np.float32
    assert action[-1] in (-1, 1)


def test_a_recorded_state_that_is_none_of_its_own_is_refused(made):
    _, _, simulator = made
    with pytest.raises(UserError, match="state"):
        simulator.restore(simulator.episode(simulator.tasks()[0], 0), SimulatorState(values=np.zeros(3)))


@pytest.mark.slow
def test_closing_twice_does_no_harm_and_the_next_episode_starts_anew(made):
    _, _, simulator = made
    simulator.close()
    simulator.close()
    check_observation(begin(simulator), simulator.tasks()[0].instruction)
