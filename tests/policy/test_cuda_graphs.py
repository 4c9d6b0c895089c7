"""A control step that is replayed from a graph gives the actions of one that is computed, bit for bit."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from tape import Captures
from test_engine import INSTRUCTIONS, SOURCES, observe
from test_parity import ALLOWED, HEAD_CONFIGS, make_policy

from robovlms.config.choices import CompileMode, EngineDtype, Execution, FrameCache, HeadKind, Structure
from robovlms.config.closed_loop import EngineConfig
from robovlms.errors import UserError
from robovlms.policy.engine import PolicyEngine
from robovlms.policy.graphs import cuda
from robovlms.policy.graphs.cuda import Graphs
from robovlms.registry import BACKBONES
from robovlms.types import Batch

W = 4


@pytest.fixture
def captures(monkeypatch):
    """Capture on a CPU as on a GPU."""
    captures = Captures()
    monkeypatch.setitem(cuda.CAPTURES, "cpu", captures)
    return captures


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    for name in ("flow", "diffusion"):
        monkeypatch.setitem(HEAD_CONFIGS, name, replace(HEAD_CONFIGS[name], num_steps=2))


def make_engine(policy, window_size=W, **options):
    config = EngineConfig(**{"device": "cpu", **options})
    return PolicyEngine(policy, SOURCES, window_size=window_size, config=config)


def both(policy, window_size=W, **options):
    """Return an engine without graphs and one with."""
    return [make_engine(policy, window_size, cuda_graph=choice, **options) for choice in (False, True)]


def play(engine, counts, instruction="open the drawer", source="play", **options):
    """Return the actions of some steps, in each of which as many sessions ask as `counts` says."""
    sessions = [engine.open(source, **options) for _ in range(max(counts))]
    found = []
    for step, count in enumerate(counts):
        given = [replace(observe(10 * i + step), instruction=instruction) for i in range(count)]
        if source == "arm":
            given = [replace(each, proprio=each.proprio[:1]) for each in given]
        found += engine.step(list(zip(sessions, given, strict=False)))
    return np.stack(found)


def kinds():
    """Every structure with every head."""
    for structure, head in ALLOWED:
        if HEAD_CONFIGS[head].kind is not HeadKind.slots or BACKBONES.get("nano").can_parallel:
            yield pytest.param(structure, head, marks=[] if head in ("lstm", "mlp") else [pytest.mark.slow])


@pytest.mark.parametrize(("structure", "head"), kinds())
def test_every_structure_with_every_head_gives_the_same_actions_bit_for_bit(structure, head, captures, caplog):
    w = 1 if structure is Structure.one_step else W
    policy = make_policy("nano", structure, head, proprio=True, window_size=w)
    plain, captured = both(policy, w)
    counts = [2] * (W + 2)
    assert np.array_equal(play(plain, counts), play(captured, counts))
    assert captures.taken
    assert "cuda_graph" not in caplog.text  # nothing was refused


@pytest.mark.parametrize(
    "backbone", [pytest.param(name, marks=[] if name == "nano" else [pytest.mark.slow]) for name in BACKBONES.names()]
)
def test_every_family_is_captured_without_waiting_and_replayed_without_python(backbone, captures, caplog):
    policy = make_policy(backbone, Structure.policy_head, "lstm")
    plain, captured = both(policy)
    expected = play(plain, [1] * (W + 3))
    for _ in range(2):
        assert np.array_equal(play(captured, [1] * (W + 3)), expected)
    calls = []
    for module in policy.modules():
        module.register_forward_pre_hook(lambda *_: calls.append(1))
    session = captured.open("play")
    seen = [captured.step([(session, observe(step))])[0] for step in range(W + 3)]
    assert np.array_equal(np.stack(seen), expected)
    assert not calls
    assert "cuda_graph" not in caplog.text


@pytest.mark.parametrize(("structure", "head"), [(Structure.policy_head, "flow"), (Structure.interleaved, "mlp")])
def test_any_number_of_sessions_is_answered_by_graphs_for_powers_of_two(structure, head, captures):
    plain, captured = both(make_policy("nano", structure, head, window_size=2), 2)
    counts = [3, 1, 4, 3, 3]
    expected = play(plain, counts)
    for _ in range(2):
        np.testing.assert_allclose(play(captured, counts), expected, rtol=0, atol=1e-5)
    first = len(captures.taken)
    np.testing.assert_allclose(play(captured, counts), expected, rtol=0, atol=1e-5)
    assert len(captures.taken) == first > 0


def test_instructions_of_other_lengths_and_sources_without_a_camera_have_graphs_of_their_own(captures):
    plain, captured = both(make_policy("nano", Structure.policy_head, "gpt", proprio=True, window_size=W))
    before = 0
    for source in ("play", "arm"):
        for instruction in INSTRUCTIONS[:2]:
            given = ([1] * (W + 1), instruction, source)
            assert np.array_equal(play(captured, *given), play(plain, *given))
            assert len(captures.taken) > before
            before = len(captures.taken)


@pytest.mark.parametrize("head", ["flow", "diffusion"])
def test_chunks_that_go_on_from_the_last_one_are_captured(head, captures):
    plain, captured = both(make_policy("nano", Structure.policy_head, head, window_size=W))
    options = {"execution": Execution.real_time, "execute_steps": 2}
    given = [play(engine, [1] * 8, **options) for engine in (plain, captured)]
    assert np.array_equal(*given)


@pytest.mark.parametrize("head", ["lstm", pytest.param("flow", marks=pytest.mark.slow)])
def test_weights_are_those_that_the_engine_stores(head, captures):
    plain, captured = both(make_policy("kosmos", Structure.policy_head, head, window_size=W), dtype=EngineDtype.bf16)
    assert np.array_equal(play(captured, [2] * (W + 3)), play(plain, [2] * (W + 3)))
    assert captures.taken


@pytest.mark.parametrize(
    ("structure", "head", "cache", "said"),
    [
        (Structure.one_step, "fast", FrameCache.exact, "the head looks"),
        (Structure.interleaved, "mlp", FrameCache.staggered, "structure.cache=staggered reads"),
    ],
)
def test_what_looks_at_numbers_or_grows_is_left_out_and_the_log_says_so(structure, head, cache, said, captures, caplog):
    w = 1 if structure is Structure.one_step else W
    policy = make_policy("nano", structure, head, window_size=w)
    caplog.set_level(logging.INFO, "robovlms")
    engines = [
        PolicyEngine(policy, SOURCES, window_size=w, cache=cache, config=EngineConfig(device="cpu", cuda_graph=choice))
        for choice in (False, True)
    ]
    found = [play(engine, [1] * (W + 3)) for engine in engines]
    assert np.array_equal(*found)
    assert f"engine.cuda_graph=true: {said}" in caplog.text
    assert captures.taken  # of the images


def double(batch, tensor, other):
    return tensor * 2 + batch.text_ids[:, :1] + (0 if other is None else other)


def inputs(rows, width, other=False):
    ids = torch.arange(rows * 3).reshape(rows, 3)
    batch = Batch(frames={}, text_ids=ids, text_mask=ids > 0)
    tensor = torch.rand(rows, width)
    return batch, tensor, torch.rand(rows, width) if other else None


def test_a_shape_is_captured_when_it_is_met_again_and_the_one_not_used_for_longest_is_forgotten():
    captures = Captures()
    call = Graphs(captures, max_graphs=2)

    def ask(rows, width, other=False):
        given = inputs(rows, width, other)
        assert torch.equal(call(double, *given), double(*given))
        return len(captures.taken)

    assert [ask(2, 5), ask(2, 5), ask(2, 5)] == [0, 1, 1]
    assert [ask(3, 5), ask(4, 5), ask(3, 5)] == [1, 2, 2]  # room for four
    assert len(call) == 2
    assert [ask(2, 5), ask(2, 6), ask(2, 6)] == [2, 2, 3]  # forgets the room for four
    assert [ask(4, 5), ask(4, 5)] == [3, 4]
    assert [ask(4, 5, other=True), ask(4, 5, other=True)] == [4, 5]
    assert len(call) == 2


def test_results_are_not_overwritten_by_the_next_ones():
    call = Graphs(Captures())
    found = []
    for _ in range(4):
        given = inputs(2, 5)
        found.append((call(double, *given), double(*given)))
    assert all(torch.equal(one, other) for one, other in found)


def looking(tensor):
    return tensor * 2 if tensor.shape[1] > 3 or tensor.sum() > 0 else tensor


def test_what_cannot_be_captured_is_computed_and_named_once(caplog):
    call = Graphs(Captures())
    for value in (1.0, -1.0, 1.0, -1.0):
        given = torch.full((2, 3), value)
        assert torch.equal(call(looking, given), looking(given))
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said.startswith("engine.cuda_graph: looking runs without where shapes are as now, since ")
    assert len(call) == 0
    for _ in range(3):
        given = torch.rand(2, 4)
        assert torch.equal(call(looking, given), looking(given))
    assert len(call) == 1  # of the shapes that can be


def failing(tensor):
    if tensor.shape[1] == 3:
        raise UserError("too long")
    return tensor * 2


def test_an_error_of_the_function_is_the_same_whenever_it_is_called():
    call = Graphs(Captures())
    for _ in range(3):
        with pytest.raises(UserError, match="too long"):
            call(failing, torch.rand(2, 3))
        given = torch.rand(2, 2)
        assert torch.equal(call(failing, given), given * 2)


def test_without_a_gpu_it_is_said_and_nothing_is_captured(caplog):
    caplog.set_level(logging.INFO, "robovlms")
    plain, captured = both(make_policy("nano", Structure.one_step, "mlp"), 1)
    assert "engine.cuda_graph=true: cpu has no CUDA graphs" in caplog.text
    assert np.array_equal(play(plain, [1, 1, 1]), play(captured, [1, 1, 1]))


def test_a_vision_tower_that_captures_itself_is_refused_beside_graphs():
    config = EngineConfig(compile=CompileMode.model, cuda_graph=True)
    with pytest.raises(UserError, match=r"engine\.cuda_graph=true with engine\.compile=model is not allowed"):
        config.check("engine")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [EngineDtype.fp32, EngineDtype.bf16])
@pytest.mark.parametrize(
    ("structure", "head"),
    [
        (Structure.policy_head, "lstm"),
        (Structure.policy_head, "flow"),
        (Structure.one_step, "mlp"),
        (Structure.interleaved, "mlp"),
    ],
)
@pytest.mark.parametrize("backbone", ["kosmos", "qwen2_5_vl"])
def test_graphs_of_a_gpu_give_the_actions_of_its_kernels(backbone, structure, head, dtype, caplog):
    w = 1 if structure is Structure.one_step else W
    policy = make_policy(backbone, structure, head, window_size=w)
    plain, captured = both(policy, w, device="cuda", dtype=dtype)
    for counts in ([1] * (W + 4), [3, 4, 2] * 4):
        np.testing.assert_allclose(play(captured, counts), play(plain, counts), rtol=0, atol=1e-5)
    assert len(captured.graphs) > 0
    assert "cuda_graph" not in caplog.text
