"""What robots send: taken where it can mean one thing, refused by name where it cannot."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_parity import NORMALIZER, SOURCE, P, W, make_policy, observe

from robovlms.config.choices import Structure
from robovlms.errors import UserError
from robovlms.policy.observations import read_instruction, read_picture, read_proprio
from robovlms.policy.runner import PolicyRunner

RGB = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
RGBA = np.concatenate([RGB, np.full((12, 20, 1), 255, np.uint8)], axis=-1)
READ_ONLY = RGB.copy()
READ_ONLY.setflags(write=False)
SAME = {
    "as documented": RGB,
    "read-only": READ_ONLY,
    "negative strides": np.ascontiguousarray(RGB[::-1, ::-1])[::-1, ::-1],
    "another order in memory": np.asfortranarray(RGB),
    "channels first": RGB.transpose(2, 0, 1),
    "a batch axis": RGB[None],
    "batch and time axes": RGB[None, None],
    "a batch axis, channels first": RGB.transpose(2, 0, 1)[None],
    "RGBA": RGBA,
    "RGBA, channels first": RGBA.transpose(2, 0, 1),
    "float of 0 to 1": RGB / np.float32(255),
    "double of 0 to 1": RGB / 255,
    "float of 0 to 255": RGB.astype(np.float32),
    "half of 0 to 255": RGB.astype(np.float16),
    "int64": RGB.astype(np.int64),
    "nested lists": RGB.tolist(),
    "big-endian": RGB.astype(">i4"),
    "PIL": Image.fromarray(RGB),
    "PIL RGBA": Image.fromarray(RGBA),
    "tensor": torch.from_numpy(RGB.copy()),
    "float tensor, channels first": torch.from_numpy(RGB.copy()).permute(2, 0, 1)[None] / 255,
    "tensor with a gradient": torch.from_numpy(RGB.copy()).float().requires_grad_(),
    "bfloat16": torch.from_numpy(RGB.copy()).bfloat16(),
}


@pytest.mark.parametrize("value", SAME.values(), ids=SAME)
def test_pictures_in_any_dress_are_the_same_pixels(value):
    picture = read_picture(value, "side")
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    assert picture.flags.writeable
    np.testing.assert_array_equal(picture, RGB)


@pytest.mark.parametrize(
    "value", [RGB[..., 0], RGB[..., :1], RGB[None, ..., 0], Image.fromarray(RGB[..., 0])],
    ids=["two axes", "one channel", "channel first", "PIL"],
)  # fmt: skip
def test_a_grey_picture_has_three_equal_channels(value):
    np.testing.assert_array_equal(read_picture(value, "side"), np.repeat(RGB[..., :1], 3, axis=-1))


def test_a_picture_is_copied_so_that_a_robot_may_reuse_its_buffer():
    buffer = RGB.copy()
    picture = read_picture(buffer, "side")
    buffer[:] = 0
    np.testing.assert_array_equal(picture, RGB)


def test_black_is_black_in_every_range():
    assert not read_picture(np.zeros((4, 5, 3), np.float32), "side").any()


HALF = np.full((4, 5, 3), 0.5, np.float32)
BAD_PICTURES = {
    "nothing": (None, "it is None"),
    "text": ("side.png", "type str"),
    "encoded": (b"\xff\xd8\xff", "type bytes"),
    "an object": (object(), "type object"),
    "ragged": ([[1, 2], [3]], "type list"),
    "bool": (RGB > 9, "an array of bool"),
    "complex": (RGB * 1j, "an array of complex128"),
    "empty": (RGB[:0], "shape (0, 20, 3)"),
    "one axis": (RGB.ravel(), "shape (720,)"),
    "several frames": (np.stack([RGB, RGB]), "shape (2, 12, 20, 3)"),
    "two channels": (RGB[..., :2], "no axis is of 1, 3 or 4 channels"),
    "five channels": (np.ones((12, 20, 5), np.uint8), "no axis is of"),
    "channels first or last": (np.ones((3, 20, 3), np.uint8), "may be channels"),
    "RGBA first or last": (np.ones((4, 4, 4), np.uint8), "may be channels"),
    "16 bits": (RGB.astype(np.uint16) * 257, "16 bits may mean depth"),
    "16 bits, dark": (RGB.astype(np.uint16), "16 bits may mean depth"),
    "PIL of 16 bits": (Image.fromarray(RGB[..., 0].astype(np.uint16)), "16 bits may mean depth"),
    "NaN": (np.where(RGB > 9, RGB, np.nan), "not normalised"),
    "infinity": (np.where(RGB > 9, RGB, np.inf), "not normalised"),
    "normalised": (HALF - 1, "not normalised"),
    "too bright": (HALF * 600, "not normalised"),
    "negative integers": (RGB.astype(int) - 1, "not normalised"),
    "0 or 1": (np.round(HALF + 0.1), "0 to 1 or 0 to 255"),
    "dark or overshooting": (HALF * 2.2, "0 to 1 or 0 to 255"),
}


@pytest.mark.parametrize(("value", "reason"), BAD_PICTURES.values(), ids=BAD_PICTURES)
def test_what_is_no_picture_or_may_be_two_is_refused_with_its_view(value, reason):
    with pytest.raises(UserError, match="view 'wrist'") as raised:
        read_picture(value, "wrist")
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    "value",
    ["lift it", b"lift it", "  lift it\n", b"lift it\0\0", np.str_("lift it"), np.bytes_(b"lift it"),
     np.array("lift it"), np.array(["lift it"]), np.array([b"lift it"], object), ["lift it"], ("lift it",)],
)  # fmt: skip
def test_an_instruction_is_text_or_utf_8(value):
    assert read_instruction(value) == "lift it"


@pytest.mark.parametrize(
    ("value", "reason"),
    [("", "is empty"), (" \n", "is empty"), (b"", "is empty"), ([""], "is empty"), (None, "not None"),
     (3, "type int"), (float("nan"), "type float"), (b"\xff\xfe", "not UTF-8"), (["a", "b"], "type list"), ([], "list"),
     ({"text": "a"}, "type dict"), (np.zeros(3), "an array of float64")],
)  # fmt: skip
def test_what_is_no_instruction_is_refused(value, reason):
    with pytest.raises(UserError, match="instruction") as raised:
        read_instruction(value)
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    "value",
    [[1, 2], (1.0, 2.0), np.array([1, 2]), np.array([[1.0, 2.0]]), np.array([1, 2], np.float16), torch.tensor([1, 2]),
     torch.tensor([[[1.0, 2.0]]], dtype=torch.bfloat16), np.array([2, 1], np.int8)[::-1]],
)  # fmt: skip
def test_proprioception_is_numbers_of_any_kind(value):
    row = read_proprio(value, ["x", "grip"])
    assert row.dtype == np.float32
    assert row.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "of 2 entries; the observation has none"), ([1], "the observation has 1 entries"),
     ([1, 2, 3], "has 3 entries: send x, grip"), (1.0, "has the shape ()"), ([[1, 2], [3, 4]], "has the shape (2, 2)"),
     ([[1], [2]], "has the shape (2, 1)"), ([1, np.nan], "not finite: grip=nan"), ([np.inf, 1], "not finite: x=inf"),
     ([1e300, 1], "not finite: x=inf"), (["a", "b"], "type list"), ([True, False], "type list"),
     ([1, None], "type list"), ({"x": 1, "grip": 2}, "type dict")],
)  # fmt: skip
def test_other_proprioception_is_refused_with_its_entries(value, reason):
    with pytest.raises(UserError, match="proprioception") as raised:
        read_proprio(value, ["x", "grip"])
    assert reason in str(raised.value)


def test_a_robots_own_types_act_as_the_documented_ones():
    policy = make_policy("nano", Structure.policy_head, "mlp", proprio=True)
    plain = PolicyRunner(policy, NORMALIZER, SOURCE, window_size=W)
    other = PolicyRunner(policy, NORMALIZER, SOURCE, window_size=W)
    for step in range(2):
        sent = observe(step)
        sent.frames = {view: torch.from_numpy(f).permute(2, 0, 1)[None] / 255 for view, f in sent.frames.items()}
        sent.instruction, sent.proprio = b"open the drawer", sent.proprio.tolist()
        np.testing.assert_array_equal(other.step(sent), plain.step(observe(step)))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("frames", {"side": HALF - 1, "wrist": RGB}, "view 'side'"), ("instruction", "", "instruction is empty"),
     ("proprio", [np.nan] * P, "p0=nan, p1=nan")],
)  # fmt: skip
def test_a_step_that_is_refused_leaves_the_episode_as_it_was(field, value, reason):
    policy = make_policy("nano", Structure.policy_head, "lstm", proprio=True)
    runner, undisturbed = (PolicyRunner(policy, NORMALIZER, SOURCE, window_size=W) for _ in range(2))
    runner.step(observe(0))
    undisturbed.step(observe(0))
    bad = observe(1)
    setattr(bad, field, value)
    with pytest.raises(UserError, match=reason):
        runner.step(bad)
    np.testing.assert_array_equal(runner.step(observe(1)), undisturbed.step(observe(1)))
