"""Chunks become actions: by hand-made numbers, and against a clock that the test turns."""

from dataclasses import replace

import numpy as np
import pytest
from test_parity import NORMALIZER, SOURCE, W, make_policy, observe, whole_window

from robovlms.config.choices import Execution, ReferenceFrame, Representation, Structure
from robovlms.config.data import ActionContract
from robovlms.policy.acting import BatchedPolicy
from robovlms.policy.execution import Chunk, ChunkExecutor, continuity
from robovlms.policy.runner import PolicyRunner

ROBOT = ActionContract(
    names=["dx", "gripper"],
    representation=Representation.delta,
    frame=ReferenceFrame.world,
    position_unit=1.0,
    control_hz=10.0,
)


def chunk(made, *values):
    return Chunk(made, np.array([[value, 1.0] for value in values], np.float32))


def executed(executor, chunks, steps):
    arms = []
    for step in range(steps):
        if executor.wants(step):
            executor.add(chunks[step])
        arms.append(float(executor.action(step)[0]))
    return arms


CHUNKS = [chunk(made, *(10 * made + i for i in range(3))) for made in range(6)]  # action i of chunk m is 10 m + i


def test_first_and_chunk_execute_what_they_say():
    assert executed(ChunkExecutor(Execution.first, 1, ROBOT), CHUNKS, 4) == [0, 10, 20, 30]
    assert executed(ChunkExecutor(Execution.chunk, 2, ROBOT), CHUNKS, 5) == [0, 1, 20, 21, 40]
    assert executed(ChunkExecutor(Execution.chunk, 3, ROBOT), CHUNKS, 5) == [0, 1, 2, 30, 31]


def test_an_ensemble_averages_all_predictions_of_a_step_the_oldest_most():
    weights = np.exp(-0.01 * np.arange(3))
    expected = [
        0,
        (1 * weights[0] + 10 * weights[1]) / weights[:2].sum(),
        (np.array([2, 11, 20]) @ weights) / weights.sum(),
    ]
    found = executed(ChunkExecutor(Execution.ensemble, 1, ROBOT), CHUNKS, 4)
    np.testing.assert_allclose(found[:3], expected, rtol=1e-6)
    np.testing.assert_allclose(found[3], (np.array([12, 21, 30]) @ weights) / weights.sum(), rtol=1e-6)


def test_the_gripper_of_an_ensemble_is_decided_by_the_weighted_majority():
    executor = ChunkExecutor(Execution.ensemble, 1, ROBOT)
    for made, gripper in enumerate((1.0, -1.0, -1.0)):
        executor.add(Chunk(made, np.array([[0.0, gripper]] * 3, np.float32)))
    assert executor.action(2)[1] == -1
    assert executor.action(2).dtype == np.float32


TWO_HANDS = replace(
    ROBOT, names=["left/gripper", "left/dx", "right/gripper", "right/dx"], continuous_grippers=["right/gripper"]
)


def test_of_several_grippers_an_ensemble_decides_the_binary_ones_and_averages_openings_wherever_they_stand():
    executor = ChunkExecutor(Execution.ensemble, 1, TWO_HANDS)
    for made, gripper in enumerate((1.0, -1.0, -1.0)):
        executor.add(Chunk(made, np.array([[gripper, 0.0, gripper, 0.0]] * 3, np.float32)))
    left, _, right, _ = executor.action(2)
    assert left == -1
    assert right == pytest.approx(-1 / 3, abs=0.01)


def test_a_robot_with_several_grippers_is_held_with_all_of_them_as_they_were():
    executor = ChunkExecutor(Execution.chunk, 1, TWO_HANDS)
    executor.add(Chunk(0, np.array([[1.0, 0.5, 0.25, 0.5]], np.float32)))
    executor.action(0)
    assert executor.held().tolist() == [1.0, 0.0, 0.25, 0.0]


def test_a_step_beyond_every_chunk_says_that_the_policy_is_too_slow():
    executor = ChunkExecutor(Execution.chunk, 3, ROBOT)
    executor.add(CHUNKS[0])
    with pytest.raises(TimeoutError, match=r"made at step 0 and has 3 actions, but step 3 is due: .*chunk_size"):
        executor.action(3)


def test_modes_that_ask_at_every_step_refuse_more_steps():
    with pytest.raises(ValueError, match=r"execution=ensemble .*execute_steps=2 must be 1"):
        ChunkExecutor(Execution.ensemble, 2, ROBOT)


def test_a_chunk_keeps_what_is_executed_before_it_arrives_and_then_less_and_less():
    weights = continuity(6, passed=2, delay=1)
    assert weights[0] == 1
    assert weights[:5] == sorted(weights[:5], reverse=True)
    assert 0 < weights[3] < weights[2] < weights[1] < 1
    assert weights[4:] == [0, 0]
    assert continuity(4, passed=3, delay=0)[1:] == [0, 0, 0]
    assert continuity(4, passed=1, delay=9)[:3] == [1, 1, 1]


class Clock:
    """Seconds that only the test moves on."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def test_an_action_that_took_two_steps_to_find_is_the_third_of_its_chunk():
    clock = Clock()
    policy = make_policy("nano", Structure.policy_head, "lstm")
    runner = PolicyRunner(policy, NORMALIZER, SOURCE, window_size=W, execute_steps=3, clock=clock)
    runner.reset()
    expected = NORMALIZER.denormalize(policy_chunk(runner, observe(0))).numpy()
    runner.reset()
    policy.head.lstm.register_forward_hook(lambda *_: setattr(clock, "seconds", clock.seconds + 0.2))  # at 10 Hz
    np.testing.assert_allclose(runner.step(observe(0)), expected[2], atol=1e-5)
    assert runner.delay == 2
    clock.seconds += 0.1
    slow = runner.step(observe(1))  # step 3: the policy is asked, and takes until step 5
    assert runner.executor.chunks[-1].made == 3
    np.testing.assert_allclose(slow, runner.executor.chunks[-1].actions[2], atol=1e-6)


def policy_chunk(runner, observation):
    runner.session.observe(observation)
    return BatchedPolicy(runner.policy, 1).act([runner.memory])[0]


@pytest.mark.parametrize("head", ["flow", "diffusion"])
def test_real_time_chunks_go_on_where_the_last_one_was(head):
    def jumps(execution):
        runner = PolicyRunner(
            make_policy("nano", Structure.policy_head, head), NORMALIZER, SOURCE,
            window_size=W, execution=execution, execute_steps=2,
        )  # fmt: skip
        found = []
        for step in range(8):
            before = runner.executor.chunks[-1] if runner.executor.chunks else None
            action = runner.step(observe(step))
            if before is not None and runner.executor.chunks[-1].made == step:
                found.append(np.abs(before.actions[step - before.made] - action)[:-1].mean())
        return np.mean(found)

    assert jumps(Execution.real_time) < 0.5 * jumps(Execution.chunk)


def test_a_head_that_cannot_go_on_refuses_real_time():
    with pytest.raises(ValueError, match=r"real_time needs a head that goes on from a chunk: flow, diffusion"):
        PolicyRunner(
            make_policy("nano", Structure.policy_head, "mlp"), NORMALIZER, SOURCE,
            window_size=W, execution=Execution.real_time,
        )  # fmt: skip


def test_first_gives_what_the_batch_forward_gives():
    runner = PolicyRunner(
        make_policy("nano", Structure.policy_head, "lstm"),
        NORMALIZER,
        SOURCE,
        window_size=W,
        execution=Execution.first,
    )
    for step in range(W + 1):
        expected = whole_window(runner.policy, range(max(0, step - W + 1), step + 1))
        np.testing.assert_allclose(runner.step(observe(step)), expected, atol=1e-5)


def late(mode, latency, execute_steps=1, contract=ROBOT):
    """Return the actions of 12 steps when chunk n, made at step s, is [100 n + s, 100 n + s + 1, ...], 5 of them."""
    executor, actions, count = ChunkExecutor(mode, execute_steps, contract, latency=latency), [], 0
    for step in range(12):
        if executor.wants(step):
            rows = [[100 * count + step + i, 1 - 2 * (count % 2)] for i in range(5)]
            executor.add(Chunk(step, np.array(rows, np.float32)))
            count += 1
        actions.append(executor.action(step))
    return [action.tolist() for action in actions]


def test_the_old_chunk_goes_on_while_the_new_one_is_decided():
    arm = [row[0] for row in late(Execution.chunk, latency=2, execute_steps=3)]
    # asked at 0 (waited for), 3 (there at 5), 6 (there at 8), 9 (there at 11)
    assert arm == [0, 1, 2, 3, 4, 105, 106, 107, 208, 209, 210, 311]


def test_without_latency_every_chunk_is_there_at_once():
    assert [row[0] for row in late(Execution.chunk, latency=0, execute_steps=3)] == [
        0, 1, 2, 103, 104, 105, 206, 207, 208, 309, 310, 311,
    ]  # fmt: skip


def test_one_decision_is_made_at_a_time_and_an_ensemble_has_fewer_to_average():
    arm = [row[0] for row in late(Execution.ensemble, latency=3)]
    assert arm[:4] == [0, 1, 2, 3]
    assert arm[4] == pytest.approx((4 + 104 * np.exp(-0.01)) / (1 + np.exp(-0.01)), rel=1e-5)  # asked at 1, there at 4
    assert arm[5] == 105  # of that of step 1 alone; the next was asked for at 4 and is there at 7


@pytest.mark.parametrize(("representation", "held"), [("delta", [0, 1]), ("absolute", [4, 1])])
def test_where_the_old_chunk_ends_first_the_robot_is_held_with_its_gripper_as_it_was(representation, held):
    actions = late(
        Execution.chunk,
        latency=4,
        execute_steps=4,
        contract=replace(ROBOT, representation=Representation(representation)),
    )
    assert actions[4:8] == [[4, 1], held, held, held]  # the next was asked at 4, there at 8
    assert actions[8] == [108, -1]


def test_a_chunk_that_takes_as_long_as_it_lasts_is_never_executed():
    actions = late(Execution.chunk, latency=5, execute_steps=1)
    assert actions[:5] == [[i, 1] for i in range(5)]
    assert actions[5:] == [[0, 1]] * 7


def test_a_real_robot_that_runs_out_of_actions_is_still_told():
    executor = ChunkExecutor(Execution.chunk, 1, ROBOT)
    executor.add(Chunk(0, np.zeros((2, 2), np.float32)))
    with pytest.raises(TimeoutError, match="but step 2 is due"):
        executor.action(2)


@pytest.mark.parametrize(("passed", "delay"), [(1, 10), (1, 5), (4, 1), (4, 9)])
def test_no_more_is_kept_of_the_last_chunk_than_it_has(passed, delay):
    weights = continuity(5, passed, delay)
    assert weights[: min(delay, 5 - passed)] == [1.0] * min(delay, 5 - passed)
    assert weights[5 - passed :] == [0.0] * passed


@pytest.mark.parametrize("execution", [Execution.chunk, Execution.ensemble, Execution.real_time])
def test_a_session_with_latency_goes_on_with_its_last_chunk(execution):
    policy = make_policy("nano", Structure.policy_head, "flow")
    runner = PolicyRunner(policy, NORMALIZER, SOURCE, window_size=W)
    runner.session = runner.engine.open(execution=execution, latency=1)
    actions = [runner.step(observe(step)) for step in range(6)]
    assert np.isfinite(actions).all()
    assert runner.delay == 1
    made = [chunk.made for chunk in runner.executor.chunks]
    assert made[-1] == 5
    assert all(chunk.ready == chunk.made + 1 for chunk in runner.executor.chunks if chunk.made)
