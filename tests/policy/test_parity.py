"""Training and rollout are the same computation: what the runner does step by step is what the batch forward gives."""

import numpy as np
import pytest
import torch
from composing import completed, composed, plan_of
from small_heads import small_head

from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.plan import Source
from robovlms.actions.statistics import Statistics
from robovlms.config.checks import REFUSED
from robovlms.config.choices import (
    FrameCache,
    HeadKind,
    NormalizationMode,
    ReferenceFrame,
    Representation,
    Structure,
)
from robovlms.config.data import ActionContract, DataConfig, NormalizationConfig
from robovlms.heads.base import HeadSizes
from robovlms.images.processor import Processor
from robovlms.policy.policy import ProprioEncoder, VLAPolicy
from robovlms.policy.runner import PolicyRunner
from robovlms.registry import BACKBONES, HEADS
from robovlms.types import Batch, Observation

W, K, A, P = 3, 4, 7, 2
VIEWS = ["side", "wrist"]
ROWS = np.random.default_rng(0).uniform(-1, 1, (50, A)).astype(np.float32)
SMALLER = {"hidden_dim": 16, "num_heads": 8, "num_train_steps": 100, "eta": 0.5, "max_tokens": 5, "num_bins": 16}
HEAD_CONFIGS = {name: small_head(name, **SMALLER) for name in HEADS.names()}
HEAD_CONFIGS["slots"] = small_head("tokens", **SMALLER, parallel=True)
ALLOWED = [
    (structure, name)
    for structure in Structure
    for name, config in HEAD_CONFIGS.items()
    if (structure, config.kind) not in REFUSED
]
NAMES = ["dx", "dy", "dz", "u", "v", "w", "gripper"]
NORMALIZER = ActionNormalizer(
    NormalizationConfig(mode=NormalizationMode.min_max), Statistics.compute(ROWS), NAMES, [A - 1]
)
CONTRACT = ActionContract(
    names=NAMES,
    representation=Representation.delta,
    frame=ReferenceFrame.world,
    position_unit=1.0,
    control_hz=10.0,
)

DATA = DataConfig(
    name="", root="", views={}, contract=CONTRACT, normalization=NormalizationConfig(mode=NormalizationMode.min_max)
)
SOURCE = Source(
    number=0, name="", config=DATA, views=VIEWS, contract=CONTRACT, action_dims=list(range(A)),
    proprio_dims=list(range(P)), proprio_names=[f"p{i}" for i in range(P)],
)  # fmt: skip


def make_policy(backbone_name, structure, head_name, proprio=False, window_size=W):
    torch.manual_seed(0)
    backbone = BACKBONES.get(backbone_name).tiny()
    head = HEADS.get(HEAD_CONFIGS[head_name].name)(
        HEAD_CONFIGS[head_name],
        HeadSizes(
            feature_dim=backbone.hidden_dim, action_dim=A, binary=(A - 1,), window_size=window_size, chunk_size=K
        ),
    )
    if head.needs_chunks:
        head.calibrate(list(np.random.default_rng(0).uniform(-1, 1, (50, K, A))))
    if hasattr(head, "query"):
        torch.nn.init.normal_(head.query, std=0.5)
    if HEAD_CONFIGS[head_name].kind is HeadKind.slots:
        backbone.enable_bidirectional_queries()
    encoder = ProprioEncoder(P, backbone.hidden_dim) if proprio else None
    return VLAPolicy(backbone, head, structure, Processor(backbone, VIEWS, max_text_tokens=64), encoder).eval()


def observe(step):
    generator = np.random.default_rng(step)
    sizes = {"side": 40, "wrist": 24}
    frames = {view: generator.integers(0, 256, (size, size, 3), dtype=np.uint8) for view, size in sizes.items()}
    proprio = generator.standard_normal(P).astype(np.float32)
    return Observation(frames=frames, instruction="open the drawer", proprio=proprio)


def whole_window(policy, steps):
    frames = {view: stacked(view, steps)[None] for view in VIEWS}
    ids, mask = policy.processor.text(["open the drawer"])
    proprio = torch.from_numpy(np.stack([observe(step).proprio for step in steps]))[None]
    chunk = policy.predict(Batch(frames=frames, text_ids=ids, text_mask=mask, proprio=proprio))
    return NORMALIZER.denormalize(chunk)[0, 0].numpy()


def streamed():
    """Every backbone with the plainest head of every structure, every kind with all; others are extended."""
    for backbone_name in BACKBONES.names():
        for structure, head_name in ALLOWED:
            if structure is Structure.interleaved and not BACKBONES.get(backbone_name).can_interleave:
                continue
            if HEAD_CONFIGS[head_name].kind is HeadKind.slots and not BACKBONES.get(backbone_name).can_parallel:
                continue
            is_extended = head_name != "mlp" and backbone_name not in ("nano", "paligemma", "flamingo", "florence2")
            marks = [pytest.mark.extended] if is_extended else []
            for proprio in (False, True) if backbone_name == "nano" else (False,):
                yield pytest.param(backbone_name, structure, head_name, proprio, marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone_name", "structure", "head_name", "proprio"), streamed())
def test_each_streamed_action_equals_the_batch_forward_of_its_window(backbone_name, structure, head_name, proprio):
    w = 1 if structure is Structure.one_step else W
    policy = make_policy(backbone_name, structure, head_name, proprio)
    runner = PolicyRunner(policy, NORMALIZER, SOURCE, window_size=w)
    for _ in range(2):  # the second episode must not remember the first
        runner.reset()
        for step in range(W + 2):  # before the window is full, and after it slides
            expected = whole_window(policy, range(max(0, step - w + 1), step + 1))
            np.testing.assert_allclose(runner.step(observe(step)), expected, atol=1e-5)


def pairs():
    """Every backbone with one head, and the others with one backbone."""
    for backbone_name in BACKBONES.names():
        yield backbone_name, Structure.policy_head, "mlp"
        if backbone_name in ("nano", "paligemma"):
            yield from ((backbone_name, *allowed) for allowed in ALLOWED)


@pytest.mark.parametrize(("backbone_name", "structure", "head_name"), dict.fromkeys(pairs()))
def test_a_batch_of_two_instructions_equals_each_alone(backbone_name, structure, head_name):
    w = 1 if structure is Structure.one_step else W
    policy = make_policy(backbone_name, structure, head_name)
    frames = {view: torch.stack([stacked(view, range(i, i + w)) for i in range(2)]) for view in VIEWS}

    def act(rows, instructions):
        ids, mask = policy.processor.text(instructions)
        asked = Batch(frames={view: f[rows] for view, f in frames.items()}, text_ids=ids, text_mask=mask)
        with torch.no_grad():
            queries = policy.head.queries(len(ids), w)
            return policy.predict(asked), policy.ask(policy.encode(asked), asked, queries)

    instructions = ["open the drawer", "put the small red block down"]
    both, alone = act([0, 1], instructions), [act([i], instructions[i : i + 1]) for i in range(2)]
    for i, (chunk, features) in enumerate(alone):
        torch.testing.assert_close(both[0][i], chunk[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(both[1][i], features[0], rtol=0, atol=1e-4)
    _, mixed_up = act([0, 1], instructions[::-1])
    assert (mixed_up - both[1]).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def stacked(view, steps):
    """Return what a camera shows in these steps, "w h x c"."""
    return torch.from_numpy(np.stack([observe(step).frames[view] for step in steps]))


def test_staggered_caches_see_half_a_window_to_a_whole_one():
    policy = make_policy("nano", Structure.interleaved, "mlp")
    runner = PolicyRunner(policy, NORMALIZER, SOURCE, window_size=4, cache=FrameCache.staggered)
    view_mask = []
    for step in range(12):
        action = runner.step(observe(step))
        fits = [
            w for w in range(1, 5)
            if w <= step + 1 and np.allclose(action, whole_window(policy, range(step - w + 1, step + 1)), atol=1e-5)
        ]  # fmt: skip
        view_mask += fits
    assert view_mask == [1, 2, 3, 4, 3, 4, 3, 4, 3, 4, 3, 4]


def test_a_window_that_grows_reads_only_the_newest_frame_and_a_full_one_encodes_only_it():
    policy = make_policy("nano", Structure.interleaved, "mlp")
    runner = PolicyRunner(policy, NORMALIZER, SOURCE, window_size=W)
    read, encoded = [], []
    policy.backbone.blocks[0].register_forward_pre_hook(lambda _, args: read.append(args[0].shape[1]))
    policy.backbone.stem.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    for step in range(W + 2):
        runner.step(observe(step))
    frame = read[0]
    assert read == [frame] * W + [W * frame] * 2
    assert encoded == [len(VIEWS)] * (W + 2)


@pytest.mark.parametrize("backbone_name", BACKBONES.names())
def test_interleaved_is_read_by_a_backbone_or_refused(backbone_name):
    options = [f"backbone={backbone_name}", "backbone.size=tiny", "structure=interleaved", "head=mlp", "data.root=x"]
    config = completed(composed("experiment=vla_structure", *options))
    if BACKBONES.get(backbone_name).can_interleave:
        assert VLAPolicy.from_config(config, plan_of(config)).structure is Structure.interleaved
        return
    with pytest.raises(ValueError, match=f"structure=interleaved with backbone={backbone_name} is not allowed"):
        VLAPolicy.from_config(config, plan_of(config))


def test_a_chunk_is_executed_in_order_before_the_policy_is_asked_again():
    policy = make_policy("nano", Structure.policy_head, "lstm")
    runner = PolicyRunner(policy, NORMALIZER, SOURCE, window_size=W, execute_steps=2)
    actions = [runner.step(observe(step)) for step in range(3)]
    np.testing.assert_allclose(actions[0], whole_window(policy, range(1)), atol=1e-5)
    np.testing.assert_allclose(actions[2], whole_window(policy, range(3)), atol=1e-5)
    assert len(runner.memory.frames) == 3
    assert [chunk.made for chunk in runner.executor.chunks] == [0, 2]


def test_a_missing_view_is_named():
    runner = PolicyRunner(make_policy("nano", Structure.policy_head, "mlp"), NORMALIZER, SOURCE, window_size=W)
    observation = observe(0)
    del observation.frames["wrist"]
    with pytest.raises(ValueError, match=r"needs the views \['wrist'\]"):
        runner.step(observation)


def test_proprioception_decides_the_action_when_the_policy_sees_it():
    policy = make_policy("nano", Structure.policy_head, "mlp", proprio=True)
    runner = PolicyRunner(policy, NORMALIZER, SOURCE, window_size=1)
    moved = observe(0)
    moved.proprio = moved.proprio + np.float32(1)
    assert not np.allclose(runner.step(observe(0)), runner.step(moved))


@pytest.mark.parametrize(("proprio", "found"), [(None, "none"), (np.zeros(P + 1, np.float32), "3 entries")])
def test_missing_proprioception_is_named(proprio, found):
    policy = make_policy("nano", Structure.policy_head, "mlp", proprio=True)
    observation = observe(0)
    observation.proprio = proprio
    with pytest.raises(ValueError, match=f"proprioception of 2 entries; the observation has {found}"):
        PolicyRunner(policy, NORMALIZER, SOURCE, window_size=W).step(observation)


def test_proprioception_is_normalised_by_the_training_set_and_constants_keep_their_scale():
    encoder = ProprioEncoder(P, 8)
    encoder.calibrate(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert encoder.mean.tolist() == [2, 5]
    assert encoder.std.tolist() == [1, 1]
