"""A policy with projectors of each source acts as the source that is asked for: served, evaluated, exported."""

from __future__ import annotations

from pathlib import Path

import line_world
import numpy as np
import pytest
import torch
from checkpoints_to_export import export
from composing import completed, composed, plan_of
from mixed_data import mixture
from served import config_of, served
from websockets.sync.client import connect

from robovlms.actions.statistics import Statistics
from robovlms.commands.export import export as run_export
from robovlms.config.closed_loop import EvaluationConfig
from robovlms.config.commands import ExportConfig
from robovlms.errors import UserError
from robovlms.evaluation.policies.checkpoint import CheckpointPolicy
from robovlms.exporting.control_step import ControlStep
from robovlms.exporting.names import FRAMES, NEXT
from robovlms.exporting.runner import ExportedPolicy
from robovlms.policy.checkpoint import Trained, load_policy, save_policy
from robovlms.policy.engine import PolicyEngine, unwrap
from robovlms.policy.manifest import new_checkpoint
from robovlms.policy.policy import VLAPolicy
from robovlms.serving.codecs import OPENPI
from robovlms.types import Observation

SOURCES = {"play": ("side", "wrist"), "arm": ("side",)}
ATTENTION = ["head.num_heads=2"]
HEADS = {"lstm": [], "flow": [*ATTENTION, "head.num_steps=2"], "gpt": ATTENTION, "mlp": [],
         "diffusion": [*ATTENTION, "head.num_steps=2"]}  # fmt: skip
INSTRUCTION = "go 0"


def make_checkpoint(folder: Path, head: str) -> Path:
    """Write a random policy of two robots, whose sources' projectors are far from each other."""
    both = [line for line in mixture(folder, folder, folder) if not line.startswith("head.")]
    layers = [] if head == "mlp" else ["head.num_layers=1"]
    config = completed(composed(
        *both, f"head={head}", "head.hidden_dim=16", "head.per_source=true", *layers, *HEADS[head]))  # fmt: skip
    plan = plan_of(config)
    torch.manual_seed(0)
    policy = VLAPolicy.from_config(config, plan)
    for parameter in policy.head.own.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rows = np.random.default_rng(0).uniform(-1, 1, (2, 50, len(plan.action_names))).astype(np.float32)
    statistics = {source.name: Statistics.compute(rows[source.number][:, source.action_dims])
                  for source in plan.sources}  # fmt: skip
    with new_checkpoint(folder / "step_1") as unfinished:
        save_policy(unfinished, Trained(config, policy, statistics, plan))
    return folder / "step_1"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("per_source"), "lstm")


def look(step, views):
    generator = np.random.default_rng(step)
    frames = {view: generator.integers(0, 256, (32, 32, 3), np.uint8) for view in ("side", "wrist")}
    return Observation(frames={view: frames[view] for view in views}, instruction=INSTRUCTION)


def expected_of(checkpoint, source, num_steps=6):
    """Return the chunks of an engine's session of a source."""
    engine = PolicyEngine.from_checkpoint(checkpoint)
    session = engine.open(source)
    return [unwrap(engine.predict([(session, look(step, SOURCES[source]))])[0]) for step in range(num_steps)]


def test_each_source_acts_by_projectors_of_its_own(checkpoint):
    engine = PolicyEngine.from_checkpoint(checkpoint)
    before = expected_of(checkpoint, "arm", 1)[0]
    with torch.no_grad():
        for parameter in engine.policy.head.own.parameters():
            parameter[0] = 0  # of play
    (after,) = engine.predict([(engine.open("arm"), look(0, ["side"]))])
    np.testing.assert_array_equal(after, before)
    (after,) = engine.predict([(engine.open("play"), look(0, ["side", "wrist"]))])
    assert np.abs(after - expected_of(checkpoint, "play", 1)[0]).max() > 0.01


@pytest.mark.parametrize("source", SOURCES)
def test_a_server_of_a_source_gives_its_chunks(checkpoint, source):
    with served(config_of(checkpoint, f"source={source}")) as (address, _), connect(address) as client:
        assert OPENPI.unpack(client.recv())["server"]["source"] == source
        for step, expected in enumerate(expected_of(checkpoint, source, 3)):
            seen = look(step, ("side", "wrist"))
            message = {"observation/image": seen.frames["side"], "observation/wrist_image": seen.frames["wrist"]}
            client.send(OPENPI.pack({**message, "prompt": INSTRUCTION, "observation/state": np.zeros(8)}))
            np.testing.assert_allclose(OPENPI.unpack(client.recv())["actions"], expected, atol=1e-5)


@pytest.mark.parametrize("source", SOURCES)
def test_an_evaluation_acts_as_the_source_whose_actions_the_simulator_takes(checkpoint, source):
    engine = PolicyEngine.from_checkpoint(checkpoint)
    session = engine.open(source)
    world = line_world.world(kind=type("World", (line_world.LineWorld,), {"contract": session.source.contract}))
    playing = CheckpointPolicy.of(checkpoint, checkpoint, EvaluationConfig(), world)
    assert playing.source.name == source
    shared = playing.answerer(EvaluationConfig(), [INSTRUCTION])()
    for step in range(3):
        seen = look(step, SOURCES[source])
        (found,), (expected,) = shared.answer([(0, (step == 0, seen))]), engine.step([(session, seen)])
        np.testing.assert_allclose(unwrap(found), unwrap(expected), atol=1e-5)


def test_an_evaluation_that_fits_no_source_says_which_there_are(checkpoint):
    with pytest.raises(UserError, match=r"evaluation\.source=None(.|\n)*Choose one of play, arm"):
        CheckpointPolicy.of(checkpoint, checkpoint, EvaluationConfig(), line_world.world())


@pytest.mark.parametrize(("asked", "said"), [(None, "source=None: .* Choose one of play, arm"),
                                             ("amr", "source=amr: .* Did you mean 'arm'")])  # fmt: skip
def test_an_export_asks_which_source_by_its_own_option(checkpoint, tmp_path, asked, said):
    config = ExportConfig(checkpoint=str(checkpoint), output=str(tmp_path / "x.onnx"), source=asked)
    with pytest.raises(UserError, match=f"^{said}"):
        run_export(config)


@pytest.mark.parametrize("head", ["lstm", "flow", *(pytest.param(head, marks=pytest.mark.slow)
                                                    for head in HEADS if head not in ("lstm", "flow"))])  # fmt: skip
def test_a_control_step_gives_the_chunks_of_its_source(tmp_path, head):
    made = make_checkpoint(tmp_path, head)
    trained = load_policy(made)
    normalizers, size = trained.plan.normalizers(trained.statistics), trained.policy.processor.image_spec.size
    for source, normalizer in zip(trained.plan.sources, normalizers, strict=True):
        step = ControlStep(trained.policy.eval(), source, normalizer, 4, (size, size))
        inputs = step.example(1, 5)
        for number, expected in enumerate(expected_of(made, source.name)):
            seen = look(number, SOURCES[source.name])
            ids, mask = trained.policy.processor.text([seen.instruction])
            inputs |= {FRAMES + view: torch.from_numpy(frame)[None] for view, frame in seen.frames.items()}
            with torch.no_grad():
                outputs = step(inputs | {"text_ids": ids, "text_mask": mask})
            np.testing.assert_allclose(outputs["actions"][0].numpy(), expected, atol=1e-5)
            inputs |= {name: outputs[NEXT + name] for name in ("features", "count")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "source"),
    [("lstm", "arm"), *(pytest.param(head, source, marks=pytest.mark.extended)
                        for head in HEADS for source in SOURCES if (head, source) != ("lstm", "arm"))],
)  # fmt: skip
def test_a_program_gives_the_chunks_of_its_source(tmp_path, head, source):
    made = make_checkpoint(tmp_path, head)
    done = export(made, tmp_path / "policy.onnx", f"source={source}", f"instructions=['{INSTRUCTION}']")
    assert done.returncode == 0, done.stderr
    policy = ExportedPolicy(tmp_path / "policy.onnx")
    assert policy.description["source"] == source
    for step, expected in enumerate(expected_of(made, source)):
        found = policy.predict(look(step, SOURCES[source]).frames, INSTRUCTION)
        np.testing.assert_allclose(found, expected, atol=1e-5)
