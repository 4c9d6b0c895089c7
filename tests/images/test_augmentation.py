from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance

from robovlms.backbones.families.nano import Nano
from robovlms.images.augmentation import crop_images, jitter_colors, shift_images, turn_hue
from robovlms.images.processor import Processor
from robovlms.images.resizing import resize_frames
from robovlms.types import Batch, ImageSpec


def photo(height: int = 24, width: int = 30, seed: int = 0) -> torch.Tensor:
    """A picture with smooth parts, noise, black, white and grey."""
    generator = np.random.default_rng(seed)
    picture = generator.integers(0, 256, (1, 3, height, width))
    picture[:, :, :6] = np.arange(width) * 255 // (width - 1)
    picture[:, :, 6, :3], picture[:, :, 6, 3:6] = 0, 255
    return torch.from_numpy(picture.astype(np.uint8))


def colors(brightness: float = 1.0, contrast: float = 1.0, saturation: float = 1.0) -> torch.Tensor:
    return torch.tensor([[brightness, contrast, saturation]])


def pixel(red: float, green: float, blue: float) -> torch.Tensor:
    return torch.tensor([red, green, blue], dtype=torch.float32).view(1, 3, 1, 1)


def test_a_shift_moves_pixels_and_repeats_the_border():
    frame = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    down_one = shift_images(frame, torch.tensor([[1, 0]]))
    assert down_one[0, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    left_one = shift_images(frame, torch.tensor([[0, -1]]))
    assert left_one[0, 0].tolist() == [[1, 2, 2], [4, 5, 5], [7, 8, 8]]


def test_a_crop_of_share_1_is_the_identity():
    for height, width in ((24, 30), (200, 200), (480, 640)):
        frame = photo(height, width)
        assert torch.equal(crop_images(frame, torch.tensor([[1.0, 0.0, 0.0]])), frame)


def test_half_a_side_is_a_quarter_of_the_picture_magnified():
    quarters = torch.zeros(1, 1, 4, 4)
    quarters[..., 2:, :2] = 100
    quarters[..., 2:, 2:] = torch.tensor([[10.0, 30.0], [50.0, 70.0]])
    crops = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.5, 0.5, 0.5]])
    below, right, both = crop_images(quarters.expand(3, -1, -1, -1), crops)[:, 0]
    assert below[1:, :3].eq(100).all()
    assert right[:3].eq(0).all()
    assert both[1:3, 1].tolist() == [25.0, 45.0]  # a quarter of a pixel off centre: 3/4 * 3/4 * 10 + ... of four pixels
    assert both[3, 3] == 70


def test_a_crop_is_bilinear_magnification_of_a_slice():
    frame = photo(40, 60).float()
    slice_ = frame[..., 10:30, 15:45]
    expected = F.interpolate(slice_, (40, 60), mode="bilinear", align_corners=False)
    cropped = crop_images(frame, torch.tensor([[0.5, 0.25, 0.25]]))
    assert torch.allclose(cropped[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-2)


def test_a_crop_of_a_smaller_picture_needs_no_antialiasing():
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(50).expand(1, 3, 100, 100)
    spec = ImageSpec(size=25, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    cropped = resize_frames(crop_images(stripes, torch.tensor([[0.95, 0.0, 0.0]])), spec)
    assert cropped.float().std() < 8  # even grey; every fourth pixel of the stripes would be black or white
    assert cropped.float().mean().item() == pytest.approx(127.5, abs=2)


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.8, 1.2, 2.0])
@pytest.mark.parametrize(
    ("name", "enhance"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_brightness_contrast_and_saturation_are_those_of_pil(name: str, enhance: type, factor: float):
    frame = photo()
    expected = np.asarray(enhance(Image.fromarray(frame[0].permute(1, 2, 0).numpy())).enhance(factor)).astype(int)
    changed = jitter_colors(frame, colors(**{name: factor}))[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(changed - expected).max() <= 1  # PIL cuts decimals off


def test_colors_of_a_pixel_are_computed_by_hand():
    two = torch.cat([pixel(100, 50, 200), pixel(0, 100, 0)], dim=3)
    grey = 0.299 * 100 + 0.587 * 50 + 0.114 * 200  # 82.05
    assert jitter_colors(two, colors(brightness=1.5))[0, :, 0, 0].tolist() == [150, 75, 255]
    faded = jitter_colors(two, colors(saturation=0.5))[0, :, 0, 0]
    assert faded.tolist() == pytest.approx([(100 + grey) / 2, (50 + grey) / 2, (200 + grey) / 2])
    mean = (grey + 58.7) / 2
    flat = jitter_colors(two, colors(contrast=0.5))[0, :, 0, 0]
    assert flat.tolist() == pytest.approx([(100 + mean) / 2, (50 + mean) / 2, (200 + mean) / 2])


def test_steps_go_brightness_contrast_saturation_hue_and_are_clamped_between():
    frame, factors, turns = photo().float(), colors(1.6, 0.7, 1.8), torch.tensor([[0.2]])
    by_steps = jitter_colors(frame, colors(brightness=1.6))
    by_steps = jitter_colors(by_steps, colors(contrast=0.7))
    by_steps = jitter_colors(by_steps, colors(saturation=1.8))
    assert by_steps.max() == 255
    assert torch.allclose(jitter_colors(frame, factors, turns), turn_hue(by_steps, turns), atol=1e-3)


def test_a_third_of_a_turn_makes_red_green_and_green_blue():
    for turn, color in ((0.0, [255, 0, 0]), (1 / 3, [0, 255, 0]), (-1 / 3, [0, 0, 255]), (0.5, [0, 255, 255])):
        turned = turn_hue(pixel(255, 0, 0), torch.tensor([[turn]]))
        assert turned.flatten().tolist() == pytest.approx(color, abs=1e-3)
    assert turn_hue(pixel(77, 77, 77), torch.tensor([[0.3]])).flatten().tolist() == [77, 77, 77]


@pytest.mark.parametrize("turn", [-0.5, -0.05, 0.0, 0.05, 0.4])
def test_hue_is_that_of_the_standard_library(turn: float):
    turned = turn_hue(photo().float(), torch.tensor([[turn]]))[0]
    for before, after in zip(photo()[0].flatten(1).T.tolist(), turned.flatten(1).T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in before))
        expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        assert after == pytest.approx([255 * channel for channel in expected], abs=1e-2)


def test_neutral_draws_change_nothing():
    frame = photo()
    assert torch.equal(jitter_colors(frame), frame)
    assert torch.equal(jitter_colors(frame, colors(), torch.zeros(1, 1)), frame)


def test_black_frames_stay_black():
    black = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert jitter_colors(black, colors(2.0, 0.1, 2.0), torch.tensor([[0.3]])).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_images_keep_their_type_and_every_image_its_own_draw(dtype: torch.dtype):
    images = torch.cat([photo(seed=0), photo(seed=1)]).to(dtype)
    factors, turns = torch.tensor([[1.2, 0.8, 1.1], [0.7, 1.3, 0.5]]), torch.tensor([[0.1], [-0.2]])
    crops = torch.tensor([[0.9, 0.05, 0.1], [0.5, 0.5, 0.0]])
    changed, cropped = jitter_colors(images, factors, turns), crop_images(images, crops)
    assert changed.dtype == cropped.dtype == dtype
    assert 0 <= changed.min() <= changed.max() <= 255
    for i in range(2):
        rows = slice(i, i + 1)
        assert torch.equal(changed[rows], jitter_colors(images[rows], factors[rows], turns[rows]))
        assert torch.equal(cropped[rows], crop_images(images[rows], crops[rows]))


def make_batch(prepare: Processor, **drawn: dict[str, torch.Tensor] | None) -> Batch:
    frames = torch.cat([photo(40, 50, seed) for seed in range(4)]).permute(0, 2, 3, 1).reshape(2, 2, 40, 50, 3)
    ids, mask = prepare.text(["go", "stop"])
    return Batch(frames={"side": frames, "wrist": frames}, text_ids=ids, text_mask=mask, **drawn)


def test_the_processor_crops_resizes_shifts_and_then_jitters_the_views_that_were_drawn():
    prepare = Processor(Nano.tiny(), ["side", "wrist"], max_text_tokens=8)
    plain = prepare.images(make_batch(prepare))
    crops, shifts = torch.tensor([0.8, 0.1, 0.0]).expand(2, 2, 3), torch.tensor([2, -1]).expand(2, 2, 2)
    factors, turns = colors(1.2, 0.8, 1.3).expand(2, 2, 3), torch.full((2, 2, 1), 0.1)
    batch = make_batch(
        prepare, crops={"side": crops}, shifts={"side": shifts}, colors={"side": factors}, hues={"side": turns}
    )
    images = prepare.images(batch)
    assert torch.equal(images[:, :, 0], plain[:, :, 0])  # wrist: nothing drawn
    frame = batch.frames["side"][1, 0].permute(2, 0, 1)[None]
    expected = resize_frames(crop_images(frame, crops[1, :1]), prepare.image_spec)
    expected = jitter_colors(shift_images(expected, shifts[1, :1]), factors[1, :1], turns[1, :1])
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (prepare.image_spec.mean, prepare.image_spec.std))
    assert torch.allclose(images[1, 0, 1], ((expected[0].float() / 255) - mean) / std, atol=1e-5)


def test_neutral_draws_leave_the_images_bit_for_bit():
    prepare = Processor(Nano.tiny(), ["side", "wrist"], max_text_tokens=8)
    neutral = {
        "crops": torch.tensor([1.0, 0.0, 0.0]).expand(2, 2, 3),
        "shifts": torch.zeros(2, 2, 2, dtype=torch.int64),
        "colors": torch.ones(2, 2, 3),
        "hues": torch.zeros(2, 2, 1),
    }
    drawn = prepare.images(make_batch(prepare, **{name: {"side": value} for name, value in neutral.items()}))
    assert torch.equal(drawn, prepare.images(make_batch(prepare)))
