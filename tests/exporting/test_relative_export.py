"""An exported program of relative actions takes the state and gives absolute actions, as the engine does."""

import numpy as np
import pytest
import torch
from checkpoints_to_export import INSTRUCTIONS, export, observe
from relative_arm import relative_arm, save

from robovlms.errors import UserError
from robovlms.exporting.control_step import ControlStep
from robovlms.exporting.names import FRAMES, NEXT
from robovlms.exporting.runner import ExportedPolicy
from robovlms.policy.engine import PolicyEngine, unwrap


@pytest.fixture(scope="module")
def trained():
    return relative_arm()


@pytest.mark.parametrize("options", [[], ["data.convert.relative=[shoulder_lift,wrist_flex,wrist_roll,gripper]"]])
def test_a_control_step_gives_what_the_engine_gives_and_moves_with_the_state(options):
    trained = relative_arm(*options)
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
    save(trained, tmp_path / "step_1")
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
