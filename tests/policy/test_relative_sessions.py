"""A policy of relative actions gives a robot absolute ones, from the state of the frame that it was asked with."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_parity import A, K, make_policy

from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.plan import Source
from robovlms.actions.statistics import Statistics
from robovlms.config.choices import (
    Execution,
    NormalizationMode,
    ReferenceFrame,
    RelativeTo,
    Representation,
    Structure,
)
from robovlms.config.closed_loop import EngineConfig
from robovlms.config.data import ActionContract, ConvertConfig, DataConfig, NormalizationConfig
from robovlms.errors import UserError
from robovlms.policy.engine import PolicyEngine, unwrap
from robovlms.types import ActionPrefix, Observation

JOINTS = [f"j{i}" for i in range(A - 1)]
T = 20
GENERATOR = np.random.default_rng(0)
STATES = GENERATOR.uniform(-90, 90, (T + K, A - 1)).astype(np.float32)
RECORDED = np.concatenate([STATES + GENERATOR.uniform(-5, 5, STATES.shape), np.ones((T + K, 1))], 1).astype(np.float32)


def make_source():
    contract = ActionContract(
        names=[*JOINTS, "gripper"],
        representation=Representation.absolute,
        frame=ReferenceFrame.joint,
        position_unit=None,
        control_hz=10.0,
    )
    return Source.of(DataConfig(
        name="arm", root="", views={"side": "a", "wrist": "b"}, contract=contract, proprio_key="state",
        proprio_names=JOINTS, proprio_seen=[], convert=ConvertConfig(relative_to=RelativeTo.state),
        normalization=NormalizationConfig(mode=NormalizationMode.min_max),
    ))  # fmt: skip


def make_normalizer(source):
    chunks = np.stack([RECORDED[t : t + K] for t in range(T)])
    relative = chunks - np.concatenate([STATES[:T], np.zeros((T, 1), np.float32)], 1)[:, None]
    steps = [Statistics.compute(relative[:, step]) for step in range(K)]
    stats = replace(Statistics.compute(RECORDED), steps=steps)
    return ActionNormalizer(
        source.config.normalization, stats, source.contract.names, source.contract.binary, source.relative
    )


class Knowing(PolicyEngine):
    """An engine whose forward is replaced by the truth: the normalised chunk of the frame that is asked about."""

    def _act(self, sessions, prefixes):
        self.prefixes = prefixes
        (normalizer,) = self._normalizers.values()
        return [normalizer.normalize(torch.from_numpy(RECORDED[s.now() : s.now() + K]),
                                     torch.from_numpy(STATES[s.now()])) for s in sessions]  # fmt: skip


@pytest.fixture(scope="module")
def policy():
    return make_policy("nano", Structure.one_step, "flow", window_size=1)


def engine_of(policy, kind=Knowing):
    source = make_source()
    return kind(policy, [(source, make_normalizer(source))], window_size=1, config=EngineConfig(device="cpu"))


def look(step, **changes):
    frames = {view: np.zeros((32, 32, 3), np.uint8) for view in ("side", "wrist")}
    return Observation(**{"frames": frames, "instruction": "go", "proprio": STATES[step]} | changes)


@pytest.mark.parametrize("latency", [0, 2])
@pytest.mark.parametrize(
    ("execution", "execute_steps"),
    [(Execution.first, 1), (Execution.chunk, 1), (Execution.chunk, 2), (Execution.ensemble, 1),
     (Execution.real_time, 2)],
)  # fmt: skip
def test_a_robot_gets_the_recorded_actions_however_chunks_are_executed(policy, execution, execute_steps, latency):
    engine = engine_of(policy)
    session = engine.open(execution=execution, execute_steps=execute_steps, latency=latency)
    for _ in range(2):
        got = [unwrap(engine.step([(session, look(step))])[0]) for step in range(T)]
        assert np.abs(np.stack(got) - RECORDED[:T]).max() <= 1e-6 * np.ptp(RECORDED)
        session.reset()


def test_a_client_gets_absolute_chunks_and_what_it_has_decided_is_read_from_the_new_state(policy):
    engine = engine_of(policy)
    session, normalizer = engine.open(), make_normalizer(make_source())
    chunk = unwrap(engine.predict([(session, look(0))])[0])
    assert np.abs(chunk - RECORDED[:K]).max() <= 1e-6 * np.ptp(RECORDED)
    session.reset()
    engine.predict([(session, look(0, prefix=ActionPrefix(actions=RECORDED[:2], delay=1)))])
    expected = normalizer.normalize(torch.from_numpy(RECORDED[:2]), torch.from_numpy(STATES[0]))
    torch.testing.assert_close(engine.prefixes[0].actions[0, :2], expected)


def test_a_chunk_goes_on_in_the_terms_of_the_new_state(policy):
    engine = engine_of(policy)
    session = engine.open(execution=Execution.real_time, execute_steps=2)
    for step in range(3):
        engine.step([(session, look(step))])
    expected = make_normalizer(make_source()).normalize(torch.from_numpy(RECORDED[2:K]), torch.from_numpy(STATES[2]))
    torch.testing.assert_close(engine.prefixes[0].actions[0, : K - 2], expected, atol=1e-4, rtol=0)


def test_a_state_is_needed_even_where_the_policy_does_not_see_it_and_a_refusal_changes_nothing(policy):
    assert policy.proprio is None
    engine = engine_of(policy)
    session = engine.open()
    engine.step([(session, look(0))])
    for proprio, reason in ((None, "needs proprioception of 6 entries"), (STATES[1] * np.nan, "is not finite"),
                            (STATES[1][:2], "has 2 entries")):  # fmt: skip
        with pytest.raises(UserError, match=reason):
            unwrap(engine.step([(session, look(1, proprio=proprio))])[0])
    action = unwrap(engine.step([(session, look(1))])[0])
    assert np.abs(action - RECORDED[1]).max() <= 1e-6 * np.ptp(RECORDED)


def test_a_real_forward_moves_with_the_state_it_is_given(policy):
    engine = engine_of(policy, PolicyEngine)
    first, second = (unwrap(engine.predict([(engine.open(), look(step))])[0]) for step in (0, 1))
    moved = np.broadcast_to(STATES[1] - STATES[0], (K, A - 1))
    np.testing.assert_allclose((second - first)[:, :-1], moved, atol=1e-4)
    assert len(engine.act_on_reference())
