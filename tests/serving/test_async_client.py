"""A robot that never waits, against a policy that is really served, over a network that is really bad."""

from __future__ import annotations

import json
import math
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from relay import Relay
from served import SINGLE, chunks, close, config_of, observation, served
from test_parity import NORMALIZER, SOURCE, make_policy, observe
from websockets.sync.server import serve

from robovlms.client import AsyncPolicyClient, PolicyClient, RefusedError
from robovlms.config.choices import Structure
from robovlms.errors import UserError
from robovlms.policy.engine import PolicyEngine
from robovlms.policy.spec import PolicySpec, SourceSpec
from robovlms.serving.codecs import OPENPI
from robovlms.serving.service import Service

CONFIG = config_of(SINGLE)
K = 3  # actions of a chunk


@pytest.fixture(scope="module")
def address():
    with served(CONFIG) as found:
        yield found[0]


@pytest.fixture
def relay(address):
    with Relay(address).running() as found:
        yield found


def seen(step):
    found = observation(step)
    return {**found.frames, "instruction": found.instruction}


def step_of(policy, observation):
    """Act as a loop at its rate does, which leaves the thread the time to ask."""
    action = policy.act(observation)
    until(lambda: not policy._is_asked)
    return action


def until(happens, seconds=10.0):
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_first_chunk_is_waited_for_and_executed_from_its_first_action(address):
    (expected,) = chunks(CONFIG, [0])
    with AsyncPolicyClient(address, join="chunk", execute_steps=K) as policy:
        policy.start(seen(0))
        for i in range(K):
            close(step_of(policy, seen(i)), expected[i])
        assert policy.counters.steps == K
        assert policy.counters.chunks == 1


def test_every_frame_is_remembered_however_seldom_the_policy_is_asked(address):
    """What the third chunk of a session is that is shown every frame."""
    expected = chunks(CONFIG, range(5))
    with AsyncPolicyClient(address, join="chunk", execute_steps=2) as policy:
        policy.start(seen(0))
        for step in range(5):
            action = step_of(policy, seen(step))
            asked = 1 + step // 2
            until(lambda n=asked: policy.counters.chunks == n)
        # step 4 is asked about at step 4, so step 4's action is that of the chunk before
        close(action, expected[2][2])
        close(step_of(policy, seen(5)), expected[4][1])


def test_stale_first_actions_of_a_late_chunk_are_skipped(relay):
    expected = chunks(CONFIG, range(3))
    with AsyncPolicyClient(relay.address, join="chunk", execute_steps=1) as policy:
        policy.start(seen(0))
        relay.delay = lambda: 0.4  # longer than two steps take on a busy machine
        close(step_of(policy, seen(0)), expected[0][0])
        close(step_of(policy, seen(1)), expected[0][1])  # asks about step 1
        close(step_of(policy, seen(2)), expected[0][2])  # the old chunk goes on
        until(lambda: policy.counters.chunks == 2)
        close(step_of(policy, seen(3)), expected[1][2])  # step 3 is the third action of the chunk made at step 1


def test_an_ensemble_weighs_predictions_as_the_executor_does(address):
    expected = chunks(CONFIG, range(2))
    with AsyncPolicyClient(address, join="ensemble") as policy:
        policy.start(seen(0))
        step_of(policy, seen(0))
        step_of(policy, seen(1))
        until(lambda: policy.counters.chunks == 2)
        found = step_of(policy, seen(2))
    weights = np.exp(-0.01 * np.arange(2))
    both = np.stack([expected[0][2], expected[1][1]])
    np.testing.assert_allclose(found[:-1], ((both * weights[:, None]).sum(0) / weights.sum())[:-1], atol=1e-6)
    assert found[-1] in (-1.0, 1.0)


def test_a_loop_never_waits_whatever_becomes_of_the_network(relay):
    taken = []
    with AsyncPolicyClient(relay.address, join="chunk", answer_timeout_s=0.2) as policy:
        policy.start(seen(0))
        for happens in (lambda: None, relay.freeze, relay.cut, relay.thaw):
            happens()
            for step in range(20):
                frames = seen(step)
                started = time.perf_counter()
                action = policy.act(frames)
                taken.append(time.perf_counter() - started)
                assert np.isfinite(action).all()
                time.sleep(0.01)
        until(lambda: policy.counters.reconnects >= 1)
        before = policy.counters.chunks
        until(lambda: policy.act(seen(0)) is not None and policy.counters.chunks > before)
    assert np.median(taken) < 0.005
    assert max(taken) < 0.1


def test_after_a_lost_connection_the_policy_remembers_the_same_frames(relay):
    expected = chunks(CONFIG, range(4))
    with AsyncPolicyClient(relay.address, join="chunk", execute_steps=1) as policy:
        policy.start(seen(0))
        for step in range(3):
            policy.act(seen(step))
            until(lambda n=step: policy.counters.chunks == n + 1)
        relay.cut()
        policy.act(seen(3))
        until(lambda: policy.counters.chunks == 4)
        assert policy.counters.reconnects == 1
        assert policy.counters.lost == 1
        close(policy.act(seen(4)), expected[3][1])
    assert relay.num_connections == 2


def test_a_lost_answer_is_asked_for_again_and_nothing_is_remembered_twice(relay):
    expected = chunks(CONFIG, range(2))
    relay.drops = lambda number: number == 1
    with AsyncPolicyClient(relay.address, join="chunk", execute_steps=1, answer_timeout_s=0.1) as policy:
        policy.start(seen(0))
        step_of(policy, seen(0))
        step_of(policy, seen(1))  # its answer is lost
        until(lambda: policy.counters.chunks == 2)
        assert policy.counters.lost == 1
        close(step_of(policy, seen(2)), expected[1][1])
    assert relay.num_connections == 1


def test_answers_that_overtake_each_other_belong_to_their_own_steps(relay):
    expected = chunks(CONFIG, range(3))
    relay.keeps_order, waits = False, [0.0, 0.3, 0.0, 0.8]  # the third overtakes the second; the fourth comes too late
    relay.delay = lambda: waits.pop(0) if waits else 0.0
    with AsyncPolicyClient(relay.address, join="chunk", execute_steps=1, answer_timeout_s=0.1) as policy:
        policy.start(seen(0))
        step_of(policy, seen(0))
        step_of(policy, seen(1))
        step_of(policy, seen(2))
        until(lambda: policy.counters.lost == 1)
        until(lambda: policy.counters.chunks == 2)  # to step 2
        time.sleep(0.35)
        close(step_of(policy, seen(3)), expected[2][1])
        until(lambda: policy.counters.late == 1)
        close(step_of(policy, seen(4)), expected[2][2])


def test_an_answer_that_was_given_up_is_used_when_it_comes_in_time(relay):
    expected = chunks(CONFIG, range(3))
    waits = [0.0, 0.25]
    relay.delay = lambda: waits.pop(0) if waits else 0.0
    with AsyncPolicyClient(relay.address, join="chunk", execute_steps=2, answer_timeout_s=0.15) as policy:
        policy.start(seen(0))
        for step in range(3):
            step_of(policy, seen(step))  # asks about step 2
        until(lambda: policy.counters.lost == 1)
        until(lambda: policy.counters.chunks == 2)
        close(step_of(policy, seen(3)), expected[2][1])


@pytest.mark.slow
def test_a_bad_network_gives_every_step_the_action_of_a_chunk_that_was_made_for_it(relay):
    """Answers are delayed, overtaken, dropped and cut; every action is one that the policy gave for this very step."""
    draw, steps = np.random.default_rng(0), 30
    relay.keeps_order = False
    relay.delay = lambda: float(draw.choice([0.0, 0.01, 0.03, 0.3]))
    relay.drops = lambda number: number % 7 == 6
    possible, num_executed = chunks(CONFIG, range(steps)), 0
    with AsyncPolicyClient(relay.address, join="chunk", answer_timeout_s=0.2) as policy:
        policy.start(seen(0))
        for step in range(steps):
            if step == steps // 2:
                relay.cut()
            before = policy.counters
            action = policy.act(seen(step))
            if policy.counters.held == before.held:
                near = [possible[made][step - made] for made in range(max(0, step - K + 1), step + 1)]
                assert min(np.abs(action - each).max() for each in near) < 1e-5
                num_executed += 1
            until_answered(policy, before)
        counters = policy.counters
    assert counters.lost + counters.late >= 3
    assert counters.reconnects >= 1
    assert num_executed > steps / 3


def until_answered(policy, before, seconds=0.5):
    """Wait a control step: until an answer has come or is lost, but not for long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        now = policy.counters
        if (now.chunks, now.late, now.lost) != (before.chunks, before.late, before.lost):
            return
        time.sleep(0.005)


def test_a_robot_without_a_chunk_is_held_by_zeros_and_its_gripper_stays(relay):
    (expected,) = chunks(CONFIG, [0])
    with AsyncPolicyClient(relay.address, join="chunk", execute_steps=K) as policy:
        policy.start(seen(0))
        relay.freeze()
        for step in range(K):
            last = policy.act(seen(step))
        for step in range(K, K + 2):
            held = policy.act(seen(step))
            assert (held[:-1] == 0).all()
            assert held[-1] == last[-1] == expected[-1, -1]
        assert policy.counters.held == 2


def test_a_robot_without_a_chunk_stops_where_it_is_asked_to(relay):
    with AsyncPolicyClient(relay.address, join="chunk", execute_steps=K, on_starvation="stop") as policy:
        policy.start(seen(0))
        relay.freeze()
        for step in range(K):
            policy.act(seen(step))
        with pytest.raises(TimeoutError, match=r"step 3 is due, .* of 3 actions, was made at step 0.*chunk_size"):
            policy.act(seen(K))


def test_a_chunk_that_is_too_old_is_not_executed_to_its_end(relay):
    with AsyncPolicyClient(relay.address, join="chunk", execute_steps=K, max_staleness_s=0.3) as policy:
        policy.start(seen(0))
        relay.freeze()
        policy.act(seen(0))
        assert policy.counters.held == 0
        time.sleep(0.35)
        assert (policy.act(seen(1))[:-1] == 0).all()
        assert policy.counters.held == 1


def test_nothing_moves_before_the_first_chunk(relay):
    relay.freeze()
    with AsyncPolicyClient(relay.address, join="chunk") as policy:
        with pytest.raises(UserError, match=r"start\(observation\).*idle_action"):
            policy.act(seen(0))
        with pytest.raises(TimeoutError, match=r"no chunk within 0\.1 s"):
            policy.start(seen(0), timeout_s=0.1)
    stopping = AsyncPolicyClient(relay.address, join="chunk", on_starvation="stop")
    with stopping as policy, pytest.raises(TimeoutError, match=r"no chunk has arrived yet: call start"):
        policy.act(seen(0))
    idle = [0.0] * 6 + [1.0]
    with AsyncPolicyClient(relay.address, join="chunk", idle_action=idle) as policy:
        assert policy.act(seen(0)).tolist() == idle


def test_another_episode_knows_nothing_of_the_last_one(relay):
    (expected,) = chunks(CONFIG, [7])
    with AsyncPolicyClient(relay.address, join="chunk") as policy:
        policy.start(seen(0))
        relay.delay = lambda: 0.1
        step_of(policy, seen(0))
        step_of(policy, seen(1))  # its answer comes in the next episode
        policy.reset()
        policy.start(seen(7))
        close(step_of(policy, seen(7)), expected[0])
        assert policy.counters.chunks == 2


def test_an_episode_that_ends_while_the_network_is_gone_is_followed_by_another(relay):
    (expected,) = chunks(CONFIG, [7])
    with AsyncPolicyClient(relay.address, join="chunk", answer_timeout_s=0.1) as policy:
        policy.start(seen(0))
        policy.act(seen(0))
        relay.freeze()
        step_of(policy, seen(1))
        policy.reset()
        until(lambda: policy.counters.lost == 1)
        time.sleep(0.1)  # there is nothing to ask about
        relay.thaw()
        policy.start(seen(7))
        close(policy.act(seen(7)), expected[0])


def test_what_is_wrong_with_an_observation_is_raised_in_the_loop_and_the_session_goes_on(address):
    with AsyncPolicyClient(address, join="chunk") as policy:
        with pytest.raises(RefusedError, match="wrist"):
            policy.start({"instruction": "x"})
        policy.reset()
        policy.start(seen(0))
        close(policy.act(seen(0)), chunks(CONFIG, [0])[0][0])


def test_a_value_that_cannot_be_sent_is_raised_in_the_loop(address):
    with AsyncPolicyClient(address, join="chunk") as policy:
        with pytest.raises(TypeError, match="set is not sent"):
            policy.start({**seen(0), "extra": {1}})
        with pytest.raises(ConnectionError, match="closed"):
            policy.act(seen(0))


def test_pictures_are_copied(address):
    frames = seen(0)
    with AsyncPolicyClient(address, join="chunk", execute_steps=2) as policy:
        policy.start(frames)
        for step in range(3):
            step_of(policy, {**seen(step), **(shared := {"side": seen(step)["side"].copy()})})
            shared["side"][:] = 0
        until(lambda: policy.counters.chunks == 2)
        close(step_of(policy, seen(3)), chunks(CONFIG, range(3))[2][1])


def test_a_busy_server_is_asked_again_later():
    with (
        served(config_of(SINGLE, "max_sessions=1")) as (address, _),
        Relay(address).running() as relay,
        AsyncPolicyClient(relay.address, join="chunk") as policy,
    ):
        policy.start(seen(0))
        relay.refuses = True
        relay.cut()
        policy.act(seen(0))
        policy.act(seen(1))
        until(lambda: policy.counters.lost == 1)
        other = until_connected(address)
        relay.refuses = False
        time.sleep(0.3)  # is turned away
        other.close()
        until(lambda: policy.counters.chunks == 2)


def test_a_busy_policy_is_asked_again_later():
    with served(CONFIG) as (address, service), AsyncPolicyClient(address, join="chunk") as policy:
        service.dispatcher._max_waiting = 0
        with pytest.raises(TimeoutError, match="the server is busy"):
            policy.start(seen(0), timeout_s=0.3)
        assert policy.counters.lost > 1
        service.dispatcher._max_waiting = 256
        policy.start(seen(0))
        assert policy.counters.reconnects == 0


def until_connected(address):
    end = time.monotonic() + 10
    while True:
        try:
            return PolicyClient(address)
        except RefusedError:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_another_policy_behind_the_same_address_is_refused(relay):
    with (
        served(config_of(SINGLE, "protocol.gripper_closed=0")) as (other, _),
        AsyncPolicyClient(relay.address, join="chunk", idle_action=[0.0] * 7) as policy,
    ):
        policy.start(seen(0))
        relay.upstream = other
        relay.cut()
        with pytest.raises(UserError, match="serves another policy than before"):
            until(lambda: policy.act(seen(0)) is None)


OPTIONS = {
    "a join that is none": ({"join": "first"}, r"join=first must be one of real_time, ensemble, chunk"),
    "a starvation that is none": ({"on_starvation": "go"}, "on_starvation=go must be hold or stop"),
    "no time": ({"max_staleness_s": math.nan}, "max_staleness_s=nan must be above 0"),
    "steps beyond a chunk": ({"join": "chunk", "execute_steps": 4}, r"execute_steps=4 must lie in 1\.\.3"),
    "an ensemble of some": ({"join": "ensemble", "execute_steps": 2}, "execute_steps=2 must be 1"),
    "an idle action of another robot": ({"join": "chunk", "idle_action": [0.0]}, "idle_action must be 7 numbers"),
    "a head that cannot go on": ({"join": "real_time"}, "join=real_time: .* offers chunk, ensemble: its head cannot"),
}


@pytest.mark.parametrize("what", OPTIONS)
def test_options_that_do_not_fit_are_refused_by_name_when_it_connects(address, what):
    options, expected = OPTIONS[what]
    with pytest.raises(UserError, match=expected):
        AsyncPolicyClient(address, **options)


def test_a_server_that_executes_chunks_itself_is_refused():
    with served(config_of(SINGLE, "execution=chunk")) as (address, _), pytest.raises(UserError, match="PolicyClient"):
        AsyncPolicyClient(address, join="chunk")


def test_environments_and_tokens_are_those_of_the_other_client():
    with pytest.raises(ConnectionError, match=r"ws://127\.0\.0\.1:1"):
        AsyncPolicyClient("ws://127.0.0.1:1", timeout_s=5.0)
    with served(config_of(SINGLE, "token=correct-horse")) as (address, _):
        with pytest.raises(ConnectionError, match="401"):
            AsyncPolicyClient(address, token="wrong")
        with pytest.raises(RefusedError, match="control_hz"):
            AsyncPolicyClient(address, token="correct-horse", environment={"control_hz": 10})


FLOW_SPEC = PolicySpec(
    name="nano",
    views={"side": 32, "wrist": 32},
    window_size=3,
    chunk_size=4,
    sources={"play": SourceSpec(contract=SOURCE.contract, proprio_names=[], statistics="")},
)


@contextmanager
def flow_served(*overrides):
    """Serve a policy whose head can go on from a chunk; also return its engine."""
    source = replace(SOURCE, name="play", views=["side", "wrist"])
    policy = make_policy("nano", Structure.policy_head, "flow")
    engine = PolicyEngine(policy, [(source, NORMALIZER)], window_size=3)
    config = config_of(SINGLE, *overrides)
    with served(config, Service(engine, FLOW_SPEC, config)) as (address, _):
        yield address, engine


def pictures(step):
    found = observe(step)
    return {**found.frames, "instruction": found.instruction}


def test_a_chunk_goes_on_from_what_will_have_been_executed_of_the_last_one():
    """At 10 Hz, an answer that takes 0.15 s finds two more actions executed: those are kept, whatever is seen."""
    jumps = {}
    with flow_served() as (address, _), Relay(address).running() as relay:
        for join in ("chunk", "real_time"):
            with AsyncPolicyClient(relay.address, join=join, execute_steps=1) as policy:
                relay.delay = lambda: 0.15
                policy.start(pictures(0))
                step_of(policy, pictures(0))
                old = policy._joiner._executor.chunks[-1]
                step_of(policy, pictures(1))  # asks: of the old chunk its actions 1, 2, 3 are left
                until(lambda: policy.counters.chunks == 2)
                new = policy._joiner._executor.chunks[-1]
                assert (old.made, new.made) == (0, 1)
                jumps[join] = np.abs(new.actions[:2, :-1] - old.actions[1:3, :-1]).max()
    assert jumps["real_time"] < 1e-5
    assert jumps["chunk"] > 0.01


def test_a_prefix_that_is_sent_is_what_the_engine_makes_of_its_own():
    """The wire's prefix, in environment units, against the engine's, which never left it."""
    with flow_served() as (address, engine):
        session = engine.open("play")
        first, second = (engine.predict([(session, observe(step))])[0] for step in (0, 0))
        with PolicyClient(address) as policy:
            ask = {**pictures(0), "request": {"number": 5}}
            assert policy._ask(ask)["number"] == 5
            sent = {"number": 6, "prefix": first[1:], "delay": 2}
            found = policy._ask({**pictures(0), "request": sent})["actions"]
    np.testing.assert_allclose(found[:2, :-1], first[1:3, :-1], atol=1e-5)
    assert np.abs(found[3:, :-1] - second[3:, :-1]).max() < np.abs(first[3:, :-1]).max()
    assert np.abs(second[:2, :-1] - first[1:3, :-1]).max() > 1e-3


WRONG = {
    "a number that is none": ({"number": "x"}, "map with a number"),
    "no map": (3, "map with a number"),
    "a prefix that is too long": ({"number": 1, "prefix": np.zeros((5, 7))}, "up to 4 actions of .*shape"),
    "a prefix of another robot": ({"number": 1, "prefix": np.zeros((2, 3))}, "up to 4 actions of .*shape"),
    "a prefix of lists": ({"number": 1, "prefix": [[0.0], [1.0, 2.0]]}, "up to 4 actions"),
    "a prefix of words": ({"number": 1, "prefix": "x"}, "up to 4 actions"),
    "a prefix that is not finite": ({"number": 1, "prefix": np.full((1, 7), np.nan)}, "finite"),
    "a delay that is none": ({"number": 1, "prefix": np.zeros((1, 7)), "delay": -1}, "delay of a prefix"),
    "a delay of half an action": ({"number": 1, "prefix": np.zeros((1, 7)), "delay": 0.5}, "delay of a prefix"),
    "earlier frames that are none": ({"number": 1, "earlier": [3]}, "list of observations"),
    "earlier frames without pictures": ({"number": 1, "earlier": [{"instruction": "x"}]}, "needs the views"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_request_that_is_wrong_is_refused_and_the_session_is_as_it_was(what):
    request, expected = WRONG[what]
    with flow_served() as (address, engine), PolicyClient(address) as policy:
        session = engine.open("play")
        alone = [engine.predict([(session, observe(step))])[0] for step in (0, 1)]
        close(policy.act(pictures(0)), alone[0])
        numbered = isinstance(request, dict) and request["number"] == 1
        if numbered:
            answer = policy._ask({**pictures(5), "request": request})
            assert answer["number"] == 1
            assert answer["is_busy"] is False
            text = answer["error"]
        else:
            with pytest.raises(RefusedError) as error:
                policy._ask({**pictures(5), "request": request})
            text = str(error.value)
        with pytest.raises(UserError, match=expected):
            raise UserError(text)
        close(policy.act(pictures(1)), alone[1])


def test_a_head_that_cannot_go_on_refuses_a_prefix(address):
    with PolicyClient(address) as policy:
        request = {"number": 1, "prefix": np.zeros((1, 7))}
        assert "flow, diffusion" in policy._ask({**seen(0), "request": request})["error"]


def test_more_earlier_frames_than_the_policy_remembers_change_nothing(address):
    (expected,) = chunks(CONFIG, range(9))[8:]
    with PolicyClient(address) as policy:
        request = {"number": 8, "earlier": [seen(step) for step in range(8)]}
        close(policy._ask({**seen(8), "request": request})["actions"], expected)


def test_a_window_that_is_larger_than_a_message_may_be_is_refused_before_anything_moves():
    """Every frame alone is small enough; after a lost connection all of the window are sent at once."""
    with served(config_of(SINGLE, "max_message_mb=1")) as (address, _):
        frames = {**seen(0), "side": np.zeros((300, 300, 3), np.uint8)}
        with AsyncPolicyClient(address, join="chunk") as policy, pytest.raises(UserError, match="max_message_mb"):
            policy.start(frames)


def test_a_server_that_takes_nothing_keeps_nobody_for_ever():
    over = threading.Event()

    def take_nothing(connection):
        connection.send(OPENPI.pack({"chunk_size": 1}))
        over.wait(30)

    with serve(take_nothing, "127.0.0.1", 0, max_queue=1, close_timeout=0.1, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        policy = PolicyClient(f"ws://127.0.0.1:{server.socket.getsockname()[1]}", timeout_s=0.3)
        started = time.monotonic()
        with pytest.raises(ConnectionError):
            send_all(policy, [{"side": np.zeros(2**22, np.uint8)}] * 12)
        assert time.monotonic() - started < 5
        over.set()
        server.shutdown()


def send_all(policy, messages):
    for each in messages:
        policy.send(each)


def test_an_action_is_the_robots_own():
    """Whatever it does to it, what is executed next stays as it was."""
    with served(CONFIG) as (address, _), AsyncPolicyClient(address, join="chunk", execute_steps=K) as policy:
        policy.start(seen(0))
        first = policy.act(seen(0))
        first[:] = 9
        close(policy.act(seen(1)), chunks(CONFIG, [0])[0][1])


def test_threads_end_with_their_clients(address):
    before = threading.active_count()
    for _ in range(5):
        with AsyncPolicyClient(address, join="chunk") as policy:
            policy.start(seen(0))
    until(lambda: threading.active_count() <= before)
    assert json.dumps(policy.spec)
