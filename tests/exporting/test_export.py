"""A program plays what its checkpoint plays: from the first frame on, after a reset, in rows of any age."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoints_to_export import INSTRUCTIONS, ROOT, export, make_checkpoint, observe
from composing import completed, composed

from robovlms.commands.export import export as run_export
from robovlms.config.choices import Quantization
from robovlms.config.closed_loop import EngineConfig
from robovlms.config.commands import ExportConfig
from robovlms.errors import UserError
from robovlms.exporting.control_step import check_exportable
from robovlms.exporting.runner import ExportedPolicy
from robovlms.policy.engine import PolicyEngine, unwrap
from robovlms.policy.quantization.int8 import Int8Linear

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
pytest.importorskip("onnxscript", reason="needs the extra `export`")

NUM_STEPS = 50
MIXTURE = ROOT / "tests" / "old_checkpoints" / "mixture"
PLAIN = [("nano", "policy_head", "lstm")]
MORE = [
    *(("nano", "policy_head", head) for head in ("mlp", "gpt", "flow", "diffusion")),
    *(("nano", "one_step", head) for head in ("mlp", "flow", "diffusion", "tokens")),
    *((backbone, "policy_head", "lstm") for backbone in ("kosmos", "paligemma", "qwen2_5_vl")),
    ("paligemma", "policy_head", "flow"), ("kosmos", "one_step", "mlp"),
]  # fmt: skip
PROPRIO = {"lstm", "flow"}  # heads whose policies here also read proprioception


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a function that gives checkpoint and program of a combination, made once."""
    made = {}

    def get(backbone, structure, head, form="onnx"):
        key = (backbone, structure, head)
        if key not in made:
            folder = tmp_path_factory.mktemp("_".join(key))
            made[key] = make_checkpoint(folder / "step_1", *key, proprio=head in PROPRIO)
        output = made[key].with_name("policy." + {"onnx": "onnx", "torch": "pt2"}[form])
        if not output.exists():
            done = export(made[key], output, f"format={form}")
            assert done.returncode == 0, done.stderr
        return made[key], output

    return get


def seen_by(engine, step, instruction=INSTRUCTIONS[0]):
    size = engine.policy.processor.image_spec.size
    num_proprio = 0 if engine.policy.proprio is None else len(engine.policy.proprio.mean)
    return observe(step, (size, size), num_proprio, instruction)


def combinations():
    yield from (pytest.param(*each, id="-".join(each)) for each in PLAIN)
    yield from (pytest.param(*each, id="-".join(each), marks=pytest.mark.extended) for each in MORE)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "structure", "head"), combinations())
def test_fifty_steps_a_reset_and_new_instructions_are_those_of_the_engine(backbone, structure, head, exported):
    checkpoint, program = exported(backbone, structure, head)
    engine, policy = PolicyEngine.from_checkpoint(checkpoint), ExportedPolicy(program)
    session, chunks = engine.open(), []
    for step in range(NUM_STEPS):
        if step == 40:
            session.reset()
            policy.reset()
        seen = seen_by(engine, step, INSTRUCTIONS[step // 15 % 3])
        (expected,) = engine.predict([(session, seen)])
        chunks.append(policy.predict(seen.frames, seen.instruction, seen.proprio))
        np.testing.assert_allclose(chunks[-1], unwrap(expected), rtol=0, atol=1e-5)
    assert np.ptp(np.stack(chunks)[:, 0, :-1], axis=0).max() > 1e-3  # what is seen moves the actions


@pytest.mark.slow
def test_rows_of_different_ages_and_texts_in_one_run_are_each_what_it_is_alone(exported):
    checkpoint, program = exported("nano", "policy_head", "lstm")
    engine = PolicyEngine.from_checkpoint(checkpoint)
    session = onnxruntime.InferenceSession(str(program), providers=["CPUExecutionProvider"])
    policies, ages = [ExportedPolicy(program) for _ in range(3)], (0, 2, 7)
    texts = [policies[0].description["instructions"][text] for text in INSTRUCTIONS]
    for row, (policy, age) in enumerate(zip(policies, ages, strict=True)):
        for step in range(age):
            seen = seen_by(engine, 10 * row + step)
            policy.predict(seen.frames, texts[row], seen.proprio)
    now = [seen_by(engine, 100 + row) for row in range(3)]
    width = max(map(len, texts))
    inputs = {
        "frames_side": np.stack([seen.frames["side"] for seen in now]),
        "frames_wrist": np.stack([seen.frames["wrist"] for seen in now]),
        "text_ids": np.array([text + [0] * (width - len(text)) for text in texts]),
        "text_mask": np.array([[True] * len(text) + [False] * (width - len(text)) for text in texts]),
        "proprio": np.stack([seen.proprio for seen in now]),
        **{name: np.concatenate([policy._memory[name] for policy in policies]) for name in ("features", "count")},
    }
    found, _, count = session.run(["actions", "next_features", "next_count"], inputs)
    assert count.tolist() == [1, 3, 3]
    for row, policy in enumerate(policies):
        alone = policy.predict(now[row].frames, texts[row], now[row].proprio)
        np.testing.assert_allclose(found[row], alone, rtol=0, atol=1e-5)


@pytest.mark.extended
def test_a_torch_program_carries_the_same_memory_and_gives_the_same_actions(exported):
    checkpoint, program = exported("nano", "policy_head", "lstm", "torch")
    files = {"robovlms": ""}
    step = torch.export.load(program, extra_files=files).module()
    policy = ExportedPolicy(exported("nano", "policy_head", "lstm")[1])
    assert files["robovlms"].encode() == onnx_metadata(policy)
    engine = PolicyEngine.from_checkpoint(checkpoint)
    text = policy.description["instructions"][INSTRUCTIONS[0]]
    memory = {name: torch.from_numpy(value) for name, value in policy._memory.items()}
    for number in range(6):
        seen = seen_by(engine, number)
        frames = {f"frames_{view}": torch.from_numpy(frame)[None] for view, frame in seen.frames.items()}
        words = {"text_ids": torch.tensor([text]), "text_mask": torch.ones(1, len(text), dtype=torch.bool)}
        with torch.no_grad():
            outputs = step({**frames, **words, "proprio": torch.from_numpy(seen.proprio)[None], **memory})
        memory = {name: outputs[f"next_{name}"] for name in memory}
        expected = policy.predict(seen.frames, text, seen.proprio)
        np.testing.assert_allclose(outputs["actions"][0], expected, rtol=0, atol=1e-5)


def onnx_metadata(policy):
    return policy._session.get_modelmeta().custom_metadata_map["robovlms"].encode()


@pytest.mark.slow
def test_what_a_program_does_not_take_is_refused_and_the_session_is_as_it_was(exported):
    checkpoint, program = exported("nano", "policy_head", "lstm")
    engine = PolicyEngine.from_checkpoint(checkpoint)
    policy, undisturbed = ExportedPolicy(program), ExportedPolicy(program)
    seen = seen_by(engine, 0)
    frames, proprio = seen.frames, seen.proprio
    wrong = [
        (({"side": frames["side"]}, "push", proprio), r"needs the views \['side', 'wrist'\]"),
        (({**frames, "side": frames["side"][:-1]}, "push", proprio), r"view side: .*picture=\[height,width\]"),
        (({**frames, "side": frames["side"].astype(np.float32)}, "push", proprio), "view side: .*float32"),
        ((frames, "fly away", proprio), "'fly away' is not in the program, .*instructions="),
        ((frames, [], proprio), "0 token ids"),
        ((frames, "push", None), "needs proprioception"),
        ((frames, "push", proprio * np.nan), "finite"),
    ]
    for step in range(4):
        for arguments, reason in wrong:
            with pytest.raises(UserError, match=reason):
                policy.predict(*arguments)
        found, expected = (each.predict(frames, "push", proprio + step) for each in (policy, undisturbed))
        np.testing.assert_array_equal(found, expected)


def test_what_plays_a_program_imports_no_torch():
    code = "import sys, robovlms.exporting.runner; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.extended
@pytest.mark.parametrize("number", [0, 1])
def test_of_a_mixture_each_source_is_what_the_engine_gives_for_it(number, tmp_path):
    engine = PolicyEngine.from_checkpoint(MIXTURE / "checkpoints" / "step_000002")
    source = engine._sources[number]
    done = export(MIXTURE, tmp_path / "x.onnx", f"source={source.name}")
    assert done.returncode == 0, done.stderr
    policy, session = ExportedPolicy(tmp_path / "x.onnx"), engine.open(source.name)
    assert policy.views == [view for view in ("side", "wrist") if view in source.views]
    assert policy.description["action_names"] == source.contract.names
    for step in range(8):
        seen = observe(step, [engine.policy.processor.image_spec.size] * 2, len(source.proprio_names))
        (expected,) = engine.predict([(session, seen)])
        found = policy.predict(seen.frames, seen.instruction, seen.proprio)
        np.testing.assert_allclose(found, unwrap(expected), rtol=0, atol=1e-5)


@pytest.mark.extended
def test_pictures_of_the_camera_are_resized_inside(exported, tmp_path):
    checkpoint, _ = exported("nano", "policy_head", "lstm")
    done = export(checkpoint, tmp_path / "x.onnx", "picture=[48,64]")
    assert done.returncode == 0, done.stderr
    engine, policy = PolicyEngine.from_checkpoint(checkpoint), ExportedPolicy(tmp_path / "x.onnx")
    session, generator = engine.open(), np.random.default_rng(0)
    for step in range(6):
        seen = seen_by(engine, step)
        seen.frames = {view: generator.integers(0, 256, (48, 64, 3), np.uint8) for view in seen.frames}
        (expected,) = engine.predict([(session, seen)])
        found = policy.predict(seen.frames, seen.instruction, seen.proprio)
        np.testing.assert_allclose(found, unwrap(expected), rtol=0, atol=1e-4)  # a pixel may be rounded the other way


@pytest.mark.extended
def test_a_program_of_int8_matrices_has_them_in_its_file_and_acts_as_the_engine_does_with_them(exported, tmp_path):
    checkpoint, _ = exported("kosmos", "policy_head", "lstm")
    done = export(checkpoint, tmp_path / "x.onnx", "quantize=int8")
    assert done.returncode == 0, done.stderr
    config = EngineConfig(device="cpu", quantize=Quantization.int8)
    engine, policy = PolicyEngine.from_checkpoint(checkpoint, config), ExportedPolicy(tmp_path / "x.onnx")
    matrices = [each.integers for each in engine.policy.modules() if isinstance(each, Int8Linear)]
    stored = onnx.load(tmp_path / "x.onnx").graph.initializer
    written = [each for each in stored if each.data_type == onnx.TensorProto.INT8]
    assert sum(len(each.raw_data) for each in written) == sum(each.numel() for each in matrices) > 0
    session = engine.open()
    for step in range(6):
        seen = seen_by(engine, step)
        (expected,) = engine.predict([(session, seen)])
        found = policy.predict(seen.frames, seen.instruction, seen.proprio)
        np.testing.assert_allclose(found, unwrap(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["structure=interleaved", "head=mlp"], "structure=interleaved cannot be exported: what it keeps"),
        (
            ["structure=one_step", "head=tokens", "window.window_size=1"],
            "head=tokens cannot be exported: it writes token",
        ),
        (["structure=one_step", "head=fast", "window.window_size=1"], "head=fast cannot be exported"),
    ],
)
def test_what_is_not_one_forward_is_refused_with_what_can_be_exported(overrides, reason):
    config = completed(composed("data=calvin", "data.root=/data", "backbone=nano", *overrides))
    with pytest.raises(UserError, match=reason + r".*structure=policy_head with head=lstm.*head\.parallel=true"):
        check_exportable(config)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["output=x.pt2"], r"output=x\.pt2 must end with \.onnx for format=onnx"),
        (["output=x.onnx", "format=torch"], r"must end with \.pt2 for format=torch"),
        (["output=x.onnx", "picture=[224]"], r"picture=\[224\] must be height and width"),
        (["output=x.onnx", "picture=[0,224]"], "picture"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_loaded(options, reason):
    with pytest.raises(UserError, match=reason):
        completed(composed("checkpoint=x", *options, config_name="export"), schema=ExportConfig)


def test_what_exists_is_kept(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"precious")
    given = [f"checkpoint={MIXTURE}", f"output={tmp_path / 'x.onnx'}"]
    with pytest.raises(FileExistsError, match="overwrite=true"):
        run_export(completed(composed(*given, config_name="export"), schema=ExportConfig))
    assert (tmp_path / "x.onnx").read_bytes() == b"precious"
