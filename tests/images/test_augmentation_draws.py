from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.statistics import Statistics
from robovlms.backbones.families.nano import Nano
from robovlms.backbones.schemas.nano import NanoBackboneConfig
from robovlms.config.checks import check_data
from robovlms.config.choices import NormalizationMode
from robovlms.config.data import AugmentationConfig, DataConfig, MixtureDataConfig, NormalizationConfig
from robovlms.config.fields import check_fields
from robovlms.config.policy import WindowConfig
from robovlms.data.calvin.schema import CalvinDataConfig
from robovlms.data.loading.loader import Collator
from robovlms.data.loading.sampler import Draw, StepSampler
from robovlms.images.draws import Augmentation, Drawn
from robovlms.images.processor import Processor
from robovlms.types import Sample

VIEWS = ["side", "wrist"]
EVERYTHING = {
    "crop": {"side": 0.5, "wrist": 0.9},
    "brightness": 0.2,
    "contrast": 0.3,
    "saturation": 0.4,
    "hue": 0.05,
}


def data(shift: dict[str, int] | None = None, **augmentation: object) -> DataConfig:
    views = {view: f"key of {view}" for view in VIEWS}
    return DataConfig(views=views, shift=shift or {}, augmentation=AugmentationConfig(**augmentation))


def processor(views: list[str] = VIEWS, size: int = 224) -> Processor:
    config = NanoBackboneConfig(image_size=size, hidden_dim=32, num_layers=1, num_heads=1, max_text_tokens=8)
    return Processor(Nano(config), views, max_text_tokens=8)


def draw(config: DataConfig, numbers: list[int], window_size: int = 3, seed: int = 42, **made: object) -> Drawn:
    return Augmentation(config, processor(**made), window_size, seed).draw(numbers)


def make_collator(prepare: Processor, augmentation: Augmentation | None = None) -> Collator:
    names = ["x", "gripper"]
    stats = Statistics.compute(np.zeros((1, 2), np.float32))
    normalizer = ActionNormalizer(NormalizationConfig(mode=NormalizationMode.identity), stats, names, [len(names) - 1])
    return Collator(prepare, [normalizer], WindowConfig(window_size=2, chunk_size=1), augmentation)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[view], right[view]) for view in left)


def test_shifts_are_those_of_earlier_versions():
    shifts = draw(data({"side": 10, "wrist": 4}), [0, 1, 123456789]).shifts
    assert shifts["side"].tolist() == [
        [[9, -7], [10, -9], [3, -4]],
        [[4, 4], [-3, -5], [-6, 8]],
        [[6, 4], [-2, 6], [1, -8]],
    ]
    assert shifts["wrist"].tolist() == [
        [[-2, 3], [-2, 1], [0, 4]],
        [[-4, -1], [4, -2], [-4, -2]],
        [[4, 3], [-4, 3], [1, -2]],
    ]


def test_a_shift_is_meant_at_224_px():
    assert draw(data({"side": 10}), list(range(50)), size=32).shifts["side"].abs().max() == 1


def test_nothing_is_drawn_where_nothing_is_asked_for():
    assert draw(data({"side": 0}, crop={"side": 1.0}), [0]) == Drawn(None, None, None, None)
    drawn = draw(data({"side": 3, "wrist": 3}, **EVERYTHING), [0], views=["wrist"])
    assert all(list(by_view) == ["wrist"] for by_view in drawn)
    only = draw(data(brightness=0.1, hue=0.1, views=["side"]), [0])
    assert (only.shifts, only.crops, list(only.colors), list(only.hues)) == (None, None, ["side"], ["side"])


def test_a_sample_is_drawn_alike_whatever_batch_it_is_in():
    config = data({"side": 10}, **EVERYTHING)
    together, alone = draw(config, [5, 6, 7]), draw(config, [6])
    for many, one in zip(together, alone, strict=True):
        assert all(torch.equal(many[view][1:2], one[view]) for view in one)
    for other in (draw(config, [8]), draw(config, [6], seed=43)):
        assert not any(torch.equal(a["side"], b["side"]) for a, b in zip(alone, other, strict=True))


def test_a_view_and_a_kind_are_drawn_alike_whatever_else_is():
    whole = draw(data({"side": 10}, **EVERYTHING), [3])
    assert same(draw(data(crop={"wrist": 0.9}), [3]).crops, {"wrist": whole.crops["wrist"]})
    assert torch.equal(draw(data(hue=0.05, views=["wrist"]), [3]).hues["wrist"], whole.hues["wrist"])
    contrast = draw(data(contrast=0.3), [3]).colors["side"]
    assert torch.equal(contrast[..., 1], whole.colors["side"][..., 1])
    assert contrast[..., [0, 2]].eq(1).all()
    longer = draw(data({"side": 10}, **EVERYTHING), [3], window_size=5)
    assert all(torch.equal(a["side"], b["side"][:, :3]) for a, b in zip(whole, longer, strict=True))
    assert not torch.equal(whole.colors["side"], whole.colors["wrist"])


def test_frames_are_drawn_one_by_one_or_all_alike():
    apart = draw(data({"side": 10}, **EVERYTHING), [3])
    alike = draw(data({"side": 10}, per_frame=False, **EVERYTHING), [3])
    for own, shared in zip(apart, alike, strict=True):
        assert own["side"].shape == shared["side"].shape
        assert torch.equal(own["side"][:, :1].expand_as(own["side"]), shared["side"])
        assert not torch.equal(own["side"], shared["side"])


def test_draws_fill_their_ranges():
    drawn = draw(data({"side": 2}, **EVERYTHING), list(range(400)))
    assert sorted(drawn.shifts["side"].unique().tolist()) == [-2, -1, 0, 1, 2]
    side, top, left = drawn.crops["side"].unbind(-1)
    assert 0.5 <= side.square().min() < 0.505
    assert 0.995 < side.square().max() <= 1
    for start in (top, left):
        assert start.min() >= 0
        assert (start + side).max() <= 1 + 1e-6
        assert (start / (1 - side)).mean().item() == pytest.approx(0.5, abs=0.03)
    assert np.corrcoef(top.flatten() / (1 - side.flatten()), left.flatten() / (1 - side.flatten()))[0, 1] < 0.1
    for i, x in enumerate((0.2, 0.3, 0.4)):
        factor = drawn.colors["side"][..., i]
        assert 1 - x - 1e-6 <= factor.min() < 1 - 0.98 * x
        assert 1 + 0.98 * x < factor.max() <= 1 + x + 1e-6
    assert 0.049 < drawn.hues["side"].max() <= 0.05 + 1e-7
    assert -0.05 - 1e-7 <= drawn.hues["side"].min() < -0.049


def test_the_recipe_of_openvla_can_be_said():
    # Source: openvla prismatic/vla/datasets/datasets.py: crops of area 0.9, never more or less
    recipe = data(crop={"side": 0.9}, largest_crop=0.9, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05)
    check_data(recipe)
    crops = draw(recipe, list(range(100))).crops["side"]
    assert torch.allclose(crops[..., 0].square(), torch.tensor(0.9))
    assert crops[..., 1:].max() <= 1 - 0.9**0.5


def test_every_number_of_ranks_and_batch_size_gives_a_sample_the_same_pixels():
    config, prepare = data({"side": 10}, crop={"side": 0.5}, brightness=0.3, hue=0.1), processor(["side"], 32)
    collator = make_collator(prepare, Augmentation(config, prepare, 2, 0))

    def pixels(ranks: int, device_batch_size: int) -> dict[int, torch.Tensor]:
        seen = {}
        for rank in range(ranks):
            sampler = StepSampler([9], batch_size=8, device_batch_size=device_batch_size, rank=rank, world_size=ranks)
            batches = iter(sampler)
            for _ in range(8 // ranks // device_batch_size):
                draws = next(batches)
                images = prepare.images(collator([(sample(draw.window), draw) for draw in draws]))
                seen |= {draw.number: image for draw, image in zip(draws, images, strict=True)}
        return seen

    one, four = pixels(1, 8), pixels(4, 1)
    assert one.keys() == four.keys() == set(range(8))
    assert all(torch.equal(one[number], four[number]) for number in one)


def sample(window: int) -> Sample:
    frames = np.random.default_rng(window).integers(0, 256, (2, 40, 50, 3), np.uint8)
    return Sample(
        frames={"side": frames}, actions=np.zeros((2, 2), np.float32), action_mask=np.ones(2, bool), instruction="go"
    )


def test_a_collator_without_augmentation_draws_nothing():
    batch = make_collator(processor(["side"], 32))([(sample(0), Draw(0, 0))])
    assert (batch.shifts, batch.crops, batch.colors, batch.hues) == (None, None, None, None)


def _check(config: DataConfig) -> None:
    check_fields(config, "data")
    check_data(config)


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        ({"crop": {"side": 0.0}}, "data.augmentation.crop.side=0.0 must be above 0 and at most 1"),
        ({"crop": {"side": 1.1}}, "data.augmentation.crop.side=1.1 must be above 0 and at most 1"),
        ({"crop": {"side": 0.9}, "largest_crop": 0.8}, "data.augmentation.crop.side=0.9 must lie in (0, 0.8]"),
        ({"crop": {"side": float("nan")}}, "data.augmentation.crop.side=nan"),
        ({"crop": {"top": 0.9}}, "data.augmentation.crop names ['top'], which are not among data.views"),
        ({"largest_crop": 2.0}, "data.augmentation.largest_crop=2.0 must be above 0 and at most 1"),
        ({"brightness": -0.1}, "data.augmentation.brightness=-0.1 must be at least 0 and at most 1"),
        ({"contrast": 1.5}, "data.augmentation.contrast=1.5 must be at least 0 and at most 1"),
        ({"saturation": float("inf")}, "data.augmentation.saturation=inf must be at least 0 and at most 1"),
        ({"hue": 0.6}, "data.augmentation.hue=0.6 must be at least 0 and at most 0.5"),
        ({"hue": float("nan")}, "data.augmentation.hue=nan"),
        ({"views": ["top"]}, "data.augmentation.views names ['top']"),
        ({"shift": {"side": -1}}, "data.shift.side=-1 must be at least 0"),
    ],
)
def test_values_out_of_range_are_refused_with_the_option_to_change(augmentation: dict, message: str):
    config = data(**augmentation)
    with pytest.raises(ValueError, match=re.escape(message)):
        _check(config)


def test_a_part_of_a_mixture_cannot_have_augmentation_that_nobody_looks_at():
    with pytest.raises(ValueError, match=re.escape("data.sources.mine.augmentation is ignored")):
        check_data(MixtureDataConfig(sources={"mine": data(hue=0.1)}))


def test_the_options_can_be_written_in_yaml():
    written = OmegaConf.create("{crop: {side: 0.9, wrist: 1}, brightness: 0.2, views: [side], per_frame: false}")
    config = OmegaConf.merge(OmegaConf.structured(CalvinDataConfig), {"augmentation": written})
    expected = AugmentationConfig(crop={"side": 0.9, "wrist": 1.0}, brightness=0.2, views=["side"], per_frame=False)
    assert OmegaConf.to_object(config.augmentation) == expected
