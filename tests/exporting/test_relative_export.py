"""An exported program of relative actions takes the state and gives absolute actions, as the engine does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints_to_export import INSTRUCTIONS, SMALL, export, observe
from composing import completed, composed

from robovlms.actions.plan import DataPlan
from robovlms.actions.statistics import Statistics
from robovlms.errors import UserError
from robovlms.exporting.control_step import ControlStep
from robovlms.exporting.names import FRAMES, NEXT
from robovlms.exporting.runner import ExportedPolicy
from robovlms.policy.checkpoint import Trained, save_policy
from robovlms.policy.engine import PolicyEngine, unwrap
from robovlms.policy.manifest import new_checkpoint
from robovlms.policy.policy import VLAPolicy

K = 2


@pytest.fixture(scope="module")
def trained():
    """Return a random policy of an SO-101 that sees one joint and moves relative to five."""
    config = completed(composed(
        "data=so101", "data.root=/data", "data.convert.relative_to=state", "data.proprio_seen=[elbow_flex]",
        "backbone=nano", "backbone.size=tiny", "structure=policy_head", "head=mlp", "window.window_size=2",
        f"window.chunk_size={K}", "view=side_wrist", *SMALL["mlp"],
    ))  # fmt: skip
    plan = DataPlan.of(config.data, config.view.views)
    torch.manual_seed(0)
    policy = VLAPolicy.from_config(config, plan).eval()
    torch.nn.init.normal_(policy.head.query, std=0.5)
    rows = np.random.default_rng(0).uniform(-1, 1, (K, 50, len(plan.action_names))).astype(np.float32)
    steps = [Statistics.compute(scale * each) for scale, each in zip((1, 2), rows, strict=True)]
    return Trained(config, policy, {"lerobot": replace(Statistics.compute(rows[0]), steps=steps)}, plan)


def test_a_control_step_gives_what_the_engine_gives_and_moves_with_the_state(trained):
    (source,), normalizers = trained.plan.sources, trained.plan.normalizers(trained.statistics)
    engine = PolicyEngine(trained.policy, [(source, normalizers[0])], window_size=2)
    size = trained.policy.processor.image_spec.size
    step = ControlStep(trained.policy, source, normalizers[0], 2, (size, size))
    inputs, session = step.example(1, 5), engine.open()
    for number in range(3):
        seen = observe(number, (size, size), 5)
        ids, mask = trained.policy.processor.text([seen.instruction])
        inputs |= {FRAMES + view: torch.from_numpy(frame)[None] for view, frame in seen.frames.items()}
        inputs |= {"text_ids": ids, "text_mask": mask, "proprio": torch.from_numpy(seen.proprio)[None]}
        with torch.no_grad():
            outputs = step(inputs)
        expected = unwrap(engine.predict([(session, seen)])[0])
        np.testing.assert_allclose(outputs["actions"][0].numpy(), expected, atol=1e-5)
        inputs |= {name: outputs[NEXT + name] for name in ("features", "count")}


@pytest.mark.slow
def test_a_program_gives_what_the_engine_gives(trained, tmp_path):
    with new_checkpoint(tmp_path / "step_1") as unfinished:
        save_policy(unfinished, trained)
    done = export(tmp_path / "step_1", tmp_path / "policy.onnx")
    assert done.returncode == 0, done.stderr
    policy, engine = ExportedPolicy(tmp_path / "policy.onnx"), PolicyEngine.from_checkpoint(tmp_path / "step_1")
    session, size = engine.open(), engine.policy.processor.image_spec.size
    for step in range(4):
        seen = observe(step, (size, size), 5, INSTRUCTIONS[step // 2])
        expected = unwrap(engine.predict([(session, seen)])[0])
        np.testing.assert_allclose(policy.predict(seen.frames, seen.instruction, seen.proprio), expected, atol=1e-5)
    with pytest.raises(UserError, match="shoulder_pan"):
        policy.predict(seen.frames, INSTRUCTIONS[0], None)
