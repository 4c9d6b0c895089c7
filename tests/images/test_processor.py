import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import Resampling

from robovlms.backbones.families.nano import Nano
from robovlms.config.choices import Fit, Resize
from robovlms.images.processor import Processor
from robovlms.images.resizing import resize_frames, resize_picture
from robovlms.registry import BACKBONES
from robovlms.types import Batch, ImageSpec

SPECS = [
    ImageSpec(size=size, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), interpolation=interpolation)
    for size in (24, 90)
    for interpolation in (Resampling.BILINEAR, Resampling.BICUBIC, Resampling.LANCZOS)
]


@pytest.mark.parametrize("fit", list(Fit))
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.interpolation.name.lower()}-{spec.size}")
@pytest.mark.parametrize("shape", [(50, 50), (48, 64)])
def test_the_device_resizes_as_pil_does(spec, fit, shape):
    frame = np.random.default_rng(0).integers(0, 2, (*shape, 3), dtype=np.uint8) * 255  # overshoots at every edge
    exact = resize_picture(Image.fromarray(frame), spec, fit).astype(int)
    ours = resize_frames(torch.from_numpy(frame).permute(2, 0, 1)[None], spec, fit)[0].permute(1, 2, 0).numpy()
    assert exact.shape == ours.shape == (spec.size, spec.size, 3)
    difference = np.abs(ours.astype(int) - exact)
    assert difference.max() <= (2 if spec.interpolation is Resampling.LANCZOS else 1)  # 2 on a GPU
    assert difference.mean() < 0.5


def test_a_frame_is_stretched_cut_or_padded_to_a_square():
    spec = ImageSpec(size=4, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    frame = np.full((4, 8, 3), 200, dtype=np.uint8)
    frame[:, :2] = 0
    stretched, cut, padded = (resize_picture(Image.fromarray(frame), spec, fit)[..., 0] for fit in Fit)
    assert stretched[0, 0] < 50 < 150 < stretched[0, 1]  # the dark quarter is one column
    assert (cut == 200).all()
    assert 100 < padded[0, 0] < 140 < 180 < padded[1, 3]


def test_host_resize_is_pils():
    processor = Processor(Nano.tiny(), ["side"], max_text_tokens=8, resize=Resize.host)
    frames = np.random.default_rng(0).integers(0, 256, (2, 50, 60, 3), dtype=np.uint8)
    exact = np.asarray(Image.fromarray(frames[1]).resize((32, 32), Resampling.BICUBIC))
    assert (processor.host_frames(frames)[1] == exact).all()


def test_the_main_view_stands_last_in_the_sequence():
    processor = Processor(Nano.tiny(), ["side", "wrist"], max_text_tokens=8)
    side, wrist = torch.zeros(1, 1, 32, 32, 3, dtype=torch.uint8), torch.full((1, 1, 20, 20, 3), 255, dtype=torch.uint8)
    ids, mask = processor.text(["go"])
    images = processor.images(Batch(frames={"side": side, "wrist": wrist}, text_ids=ids, text_mask=mask))
    assert images.shape == (1, 1, 2, 3, 32, 32)
    assert images[0, 0, 0].eq(2).all()
    assert images[0, 0, 1].eq(-2).all()


def test_text_is_padded_on_the_right():
    ids, mask = Processor(Nano.tiny(), ["side"], max_text_tokens=8).text(["open the drawer", "stop"])
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert ids[1, 2:].tolist() == [0, 0]


def test_an_instruction_that_is_too_long_names_the_option():
    with pytest.raises(ValueError, match=r"backbone\.max_text_tokens=3"):
        Processor(Nano.tiny(), ["side"], max_text_tokens=3).text(["open the drawer"])


@pytest.mark.parametrize("name", BACKBONES.names())
def test_a_processor_travels_to_loader_processes_without_the_model(name):
    processor = Processor(BACKBONES.get(name).tiny(), ["side"], max_text_tokens=64)
    sent = pickle.dumps(processor)
    assert len(sent) < 100_000, "no weights"
    assert torch.equal(pickle.loads(sent).text(["lift it", "go"])[0], processor.text(["lift it", "go"])[0])
