"""Many sessions in one forward are what each of them is alone, whoever joins, leaves or begins again beside it."""

import os
import subprocess
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_parity import (
    ALLOWED,
    CONTRACT,
    DATA,
    HEAD_CONFIGS,
    NAMES,
    NORMALIZER,
    ROWS,
    SOURCE,
    VIEWS,
    P,
    make_policy,
    observe,
    whole_window,
)

from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.statistics import Statistics
from robovlms.config.choices import CompileMode, EngineDtype, Execution, FrameCache, HeadKind, Structure
from robovlms.config.closed_loop import EngineConfig
from robovlms.errors import UserError
from robovlms.images.processor import Processor
from robovlms.policy.engine import PolicyEngine, dtype_of
from robovlms.registry import BACKBONES
from robovlms.types import Observation

INSTRUCTIONS = ["open the drawer", "put the small red block down on the table", "push", "lift the blue cup"]
NUM_SESSIONS, NUM_ROUNDS = 8, 14
# A source without wrist camera, dz and gripper, with half of the proprioception and statistics of its own.
ARM = replace(
    SOURCE, number=1, name="arm", views=["side"], action_dims=[0, 1, 3, 4, 5, 6],
    proprio_dims=[1], proprio_names=["p1"],
    config=replace(DATA, contract=replace(CONTRACT, names=[name for name in NAMES if name not in ("dz", "gripper")])),
    contract=replace(CONTRACT, names=[name for name in NAMES if name != "dz"]),
)  # fmt: skip
ARM_NORMALIZER = ActionNormalizer(
    DATA.normalization, Statistics.compute(ROWS * np.float32(0.3)), NAMES, [len(NAMES) - 1]
)
SOURCES = [(replace(SOURCE, name="play"), NORMALIZER), (ARM, ARM_NORMALIZER)]


def make_engine(policy, window_size, max_batch_size=64, cache=FrameCache.exact, device="cpu"):
    config = EngineConfig(max_batch_size=max_batch_size, device=device)
    return PolicyEngine(policy, SOURCES, window_size=window_size, cache=cache, config=config)


class Played:
    """A session, all that it was given, and all that it gave."""

    def __init__(self, policy, generator):
        modes = list(Execution) if policy.head.supports_prefix else [m for m in Execution if m != Execution.real_time]
        execution = modes[generator.integers(len(modes))]
        asks_always = execution in (Execution.first, Execution.ensemble)
        self.options = {
            "source": ["play", "arm"][generator.integers(2)],
            "execution": execution,
            "execute_steps": 1 if asks_always else int(generator.integers(1, 5)),
        }
        self.size = int(generator.integers(20, 40))
        self.instruction = INSTRUCTIONS[generator.integers(len(INSTRUCTIONS))]
        self.given, self.actions = [], []
        self.session = None

    def look(self, generator):
        """Return a new observation; now and then the instruction is another one."""
        if generator.random() < 0.1:
            self.instruction = INSTRUCTIONS[generator.integers(len(INSTRUCTIONS))]
        sizes = {"side": self.size, "wrist": self.size + 3}
        frames = {view: generator.integers(0, 256, (size, size, 3), dtype=np.uint8) for view, size in sizes.items()}
        proprio = generator.standard_normal(P if self.options["source"] == "play" else 1)
        self.given.append(Observation(frames=frames, instruction=self.instruction, proprio=proprio))
        return self.session, self.given[-1]

    def reset(self):
        self.session.reset()
        self.given.append(None)

    def alone(self, engine):
        """Return the actions of the same session with nobody beside it."""
        session = engine.open(**self.options)
        actions = []
        for observation in self.given:
            if observation is None:
                session.reset()
            else:
                actions += engine.step([(session, observation)])
        return actions


def play(policy, engine):
    """Let sessions join, leave and begin again at random; return them all."""
    generator = np.random.default_rng(1)
    everyone, present = [], []
    for _ in range(NUM_ROUNDS):
        while len(present) < NUM_SESSIONS and generator.random() < 0.8:
            present.append(Played(policy, generator))
            present[-1].session = engine.open(**present[-1].options)
            everyone.append(present[-1])
        for played in list(present):
            if generator.random() < 0.06:
                present.remove(played)
            elif played.given and generator.random() < 0.08:
                played.reset()
        asking = [played for played in generator.permutation(present) if generator.random() < 0.8]
        for played, action in zip(asking, engine.step([p.look(generator) for p in asking]), strict=True):
            played.actions.append(action)
    return everyone


def assert_each_as_alone(policy, window_size, cache=FrameCache.exact, max_batch_size=64):
    everyone = play(policy, make_engine(policy, window_size, max_batch_size, cache))
    assert len(everyone) > NUM_SESSIONS
    alone = make_engine(policy, window_size, cache=cache)
    for played in everyone:
        for found, expected in zip(played.actions, played.alone(alone), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
            if played.options["source"] == "play":
                assert found[-1] == expected[-1]


def combinations():
    """Every structure with every head; for the families, all but the plainest of each structure are extended."""
    for backbone_name in ("nano", "kosmos", "paligemma", "qwen2_5_vl"):
        for structure, head_name in ALLOWED:
            if HEAD_CONFIGS[head_name].kind is HeadKind.slots and not BACKBONES.get(backbone_name).can_parallel:
                continue
            is_plain = head_name == ("lstm" if structure is Structure.policy_head else "mlp")
            marks = [] if backbone_name == "nano" or is_plain else [pytest.mark.extended]
            yield pytest.param(backbone_name, structure, head_name, marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone_name", "structure", "head_name"), list(combinations()))
def test_sessions_in_one_batch_are_what_each_is_alone(backbone_name, structure, head_name):
    w = 1 if structure is Structure.one_step else 4
    policy = make_policy(backbone_name, structure, head_name, proprio=True, window_size=w)
    assert_each_as_alone(policy, w)


@pytest.mark.parametrize("structure", [Structure.policy_head, Structure.interleaved])
@pytest.mark.parametrize("window_size", [1, 2, 8])
@pytest.mark.parametrize("cache", list(FrameCache))
def test_windows_of_any_size_and_either_cache_are_what_they_are_alone(structure, window_size, cache):
    if structure is Structure.policy_head and cache is FrameCache.staggered:
        pytest.skip("only interleaved windows are staggered")
    head = "gpt" if structure is Structure.policy_head else "mlp"
    policy = make_policy("nano", structure, head, proprio=True, window_size=window_size)
    assert_each_as_alone(policy, window_size, cache, max_batch_size=3)


def one_of_each(engine, count=4):
    """Return sessions of one kind."""
    return [engine.open("play", name=f"robot {i}") for i in range(count)]


def without_wrist(observation):
    del observation.frames["wrist"]


def with_endless_instruction(observation):
    observation.instruction = "on and " * 100


def with_proprio(value):
    def change(observation):
        observation.proprio[0] = value

    return change


@pytest.mark.parametrize(
    ("spoil", "kind", "reason", "goes_on"),
    [
        (without_wrist, UserError, r"needs the views \['wrist'\]", True),
        (with_endless_instruction, UserError, "more than backbone.max_text_tokens", True),
        (with_proprio(np.nan), UserError, "not finite: p0=nan", True),
        (with_proprio(1e38), FloatingPointError, "not finite at step 1, in dx", False),  # overflows inside
    ],
    ids=["view", "instruction", "proprio", "actions"],
)
@pytest.mark.parametrize("verb", ["step", "predict"])
@pytest.mark.parametrize("structure", [Structure.one_step, Structure.policy_head, Structure.interleaved])
def test_an_error_belongs_to_its_session_alone(structure, verb, spoil, kind, reason, goes_on):
    policy = make_policy("nano", structure, "mlp", proprio=True)
    with torch.no_grad():
        policy.proprio.embed[0].weight.mul_(100)
    engines = [make_engine(policy, 3) for _ in range(2)]
    sessions, undisturbed = (one_of_each(engine) for engine in engines)
    for step in range(3):
        given = [observe(10 * i + step) for i in range(4)]
        expected = getattr(engines[1], verb)(
            [each for i, each in enumerate(zip(undisturbed, given, strict=True)) if i != 2]
        )
        if step == 1:
            spoil(given[2])
        found = getattr(engines[0], verb)(list(zip(sessions, given, strict=True)))
        lost = found.pop(2)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
        if step != 1:
            assert goes_on is False or isinstance(lost, np.ndarray)
            continue
        assert isinstance(lost, kind)
        with pytest.raises(kind, match=reason if verb == "step" else reason.replace("step 1", "step 0")):
            raise lost


def test_a_sequence_too_long_for_the_decoder_is_its_sessions_fault_alone():
    policy = make_policy("kosmos", Structure.interleaved, "mlp")
    policy.processor = Processor(policy.backbone, VIEWS, max_text_tokens=10_000)
    policy.backbone.max_length = 120  # two frames and a short text, or one and a longer one
    engine, alone = make_engine(policy, 2), make_engine(policy, 2)
    sessions, single = one_of_each(engine, 3), one_of_each(alone, 3)
    texts = ["push", "push it to the left", "on and " * 30]
    for step in range(2):
        given = [replace(observe(10 * i + step), instruction=text) for i, text in enumerate(texts)]
        found = engine.step(list(zip(sessions, given, strict=True)))
        for i in range(2):
            np.testing.assert_allclose(found[i], alone.step([(single[i], given[i])])[0], rtol=0, atol=1e-5)
        assert isinstance(found[2], UserError)
        assert "exceeds the backbone's 120 positions" in str(found[2])


def test_two_observations_of_one_session_in_a_batch_are_refused_by_name():
    engine = make_engine(make_policy("nano", Structure.one_step, "mlp"), 1)
    first, second = one_of_each(engine, 2)
    requests = [(first, observe(0)), (second, observe(1)), (first, observe(2))]
    with pytest.raises(UserError, match="robot 0: asked twice in one batch"):
        engine.step(requests)
    assert not first.memory.frames


def test_a_session_of_another_engine_is_refused_by_name():
    one, other = (make_engine(make_policy("nano", Structure.one_step, "mlp"), 1) for _ in range(2))
    (session,) = one_of_each(one, 1)
    with pytest.raises(UserError, match="robot 0: opened by another engine"):
        other.predict([(session, observe(0))])


def test_nobody_is_asked_for_nothing():
    engine = make_engine(make_policy("nano", Structure.policy_head, "lstm"), 3)
    assert engine.step([]) == engine.predict([]) == []


@pytest.mark.parametrize("structure", [Structure.policy_head, Structure.interleaved])
def test_a_new_instruction_is_read_with_the_whole_window_as_in_training(structure):
    policy = make_policy("nano", structure, "lstm" if structure is Structure.policy_head else "mlp")
    engine = make_engine(policy, 3)
    (session,) = one_of_each(engine, 1)
    for step in range(6):
        text = "open the drawer" if step in (1, 4, 5) else "push"
        (action,) = engine.step([(session, replace(observe(step), instruction=text))])
        if text == "open the drawer":
            np.testing.assert_allclose(action, whole_window(policy, range(max(0, step - 2), step + 1)), atol=1e-5)


@pytest.mark.parametrize(
    ("structure", "head", "encoded"),
    [
        (Structure.one_step, "mlp", [2, 2]),
        (Structure.policy_head, "lstm", [2, 6]),
        (Structure.interleaved, "mlp", [2, 6]),
    ],
)
def test_frames_that_no_chunk_is_made_of_are_never_encoded(structure, head, encoded):
    policy = make_policy("nano", structure, head)
    counts = []
    policy.backbone.stem.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    engine = make_engine(policy, 1 if structure is Structure.one_step else 3)
    session = engine.open("play", execute_steps=4)
    for step in range(5):
        (action,) = engine.step([(session, observe(step))])
    assert counts == encoded  # two views of the first frame; of the last, or of the last three
    if structure is not Structure.one_step:
        np.testing.assert_allclose(action, whole_window(policy, range(2, 5)), atol=1e-5)


def test_all_sessions_share_one_forward_and_more_than_max_batch_size_share_several():
    policy = make_policy("nano", Structure.policy_head, "lstm")
    counts = []
    policy.backbone.stem.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    for max_batch_size, expected in ((64, [16]), (3, [6, 6, 4])):
        engine = make_engine(policy, 3, max_batch_size)
        engine.step([(session, observe(i)) for i, session in enumerate(one_of_each(engine, 8))])
        assert counts == expected
        counts.clear()


@pytest.mark.parametrize(
    ("backbone_name", "head"), [("nano", "lstm"), ("kosmos", "lstm"), ("paligemma", "flow"), ("qwen2_5_vl", "lstm")]
)
@pytest.mark.parametrize("structure", [Structure.policy_head, Structure.interleaved])
def test_bfloat16_halves_the_matrices_and_moves_actions_little(backbone_name, head, structure):
    head = "mlp" if structure is Structure.interleaved and head == "lstm" else head
    policy = make_policy(backbone_name, structure, head, proprio=True)
    engine = make_engine(policy, 3)
    exact = [engine.predict([(session, observe(i))])[0] for i, session in enumerate(one_of_each(engine, 3))]
    rounded = PolicyEngine(policy, SOURCES, window_size=3, config=EngineConfig(dtype=EngineDtype.bf16, device="cpu"))
    found = rounded.predict([(session, observe(i)) for i, session in enumerate(one_of_each(rounded, 3))])
    for one, other in zip(found, exact, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one[:, :-1], other[:, :-1], rtol=0, atol=0.05)
    dtypes = {(p.ndim > 1, p.dtype) for p in policy.backbone.parameters()}
    assert dtypes == {(True, torch.bfloat16), (False, torch.float32)}
    assert {p.dtype for p in policy.head.parameters()} == {torch.float32}


def tensors_of(value):
    """Return the tensors that a value holds, however deep."""
    if isinstance(value, torch.Tensor):
        return [value]
    held = (
        value if isinstance(value, (list, tuple, deque)) else vars(value).values() if hasattr(value, "__dict__") else []
    )
    return [tensor for each in held for tensor in tensors_of(each)]


@pytest.mark.parametrize(
    ("structure", "head"),
    [(Structure.one_step, "mlp"), (Structure.policy_head, "mlp"), (Structure.policy_head, "lstm"),
     (Structure.interleaved, "mlp")],
)  # fmt: skip
def test_a_session_that_stays_does_not_keep_what_was_computed_of_its_neighbours(structure, head):
    engine = make_engine(
        make_policy("nano", structure, head, proprio=True), 1 if structure is Structure.one_step else 4
    )
    sessions = one_of_each(engine, 8)
    for step in range(3):
        engine.step([(session, observe(10 * i + step)) for i, session in enumerate(sessions)])
    tensors = tensors_of(sessions[0].memory)
    assert len(tensors) > 3
    kept = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    assert sum(kept.values()) <= sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def compare_compiled():
    """Assert that a compiled vision tower gives the same actions for any number of rows."""
    policy = make_policy("nano", Structure.policy_head, "lstm")
    plain = make_engine(policy, 3)
    compiled = PolicyEngine(
        policy, SOURCES, window_size=3, config=EngineConfig(device="cpu", compile=CompileMode.model)
    )
    for count in (1, 3, 5):
        given = [observe(i) for i in range(count)]
        expected, found = (
            engine.predict(list(zip(one_of_each(engine, count), given, strict=True))) for engine in (plain, compiled)
        )
        np.testing.assert_allclose(np.stack(found), np.stack(expected), rtol=0, atol=1e-5)


@pytest.mark.extended
def test_a_compiled_vision_tower_gives_the_same_actions_for_any_number_of_rows():
    here = Path(__file__).parent  # in a process where shapes are not checked: the checks cannot be compiled
    code = f"import sys; sys.path[:0] = ['{here}', '{here.parent}']; import test_engine; test_engine.compare_compiled()"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(here.parents[1])})


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(UserError, match=f"engine.device={device}: .*Use auto, cpu"):
        PolicyEngine(
            make_policy("nano", Structure.one_step, "mlp"), SOURCES, window_size=1, config=EngineConfig(device=device)
        )


def test_matrices_are_rounded_on_a_gpu_alone_unless_it_is_asked_for():
    assert dtype_of(EngineConfig(device="cpu")) is torch.float32
    assert dtype_of(EngineConfig(device="cpu", dtype=EngineDtype.bf16)) is torch.bfloat16
