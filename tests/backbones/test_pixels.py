"""Our pixels are those of the published checkpoints' own image processors, at their sizes, on real frames."""

import itertools

import av
import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from PIL.Image import Resampling
from transformers import (
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    Gemma4ImageProcessorPil,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    Qwen2VLImageProcessorPil,
    Siglip2ImageProcessorPil,
    SiglipImageProcessorPil,
    SmolVLMImageProcessorPil,
)

from robovlms.backbones.families import moondream, qwen_vl, uform
from robovlms.config.choices import Fit, Resize
from robovlms.images.processor import Processor
from robovlms.registry import BACKBONES
from robovlms.types import Batch, ImageSpec

NAMES = [name for name in BACKBONES.names() if name != "nano"]


def square(side):
    return {"height": side, "width": side}


def clip(size, **options):
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square(size), **options)


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
QWEN_AREA = {"shortest_edge": 224 * 224, "longest_edge": 224 * 224}  # for frames of any size to become 224 px
PUBLISHED = {  # the image processors that preprocessor_config.json of the published checkpoints describe, from memory
    "flamingo": lambda: clip(224),
    "florence2": lambda: CLIPImageProcessorPil(size=square(768), do_center_crop=False, **IMAGENET),
    "gemma3": lambda: Gemma3ImageProcessorPil(size=square(896)),
    "gemma4": lambda: Gemma4ImageProcessorPil(),
    "idefics3": lambda: Idefics3ImageProcessorPil(size={"longest_edge": 1456}, max_image_size={"longest_edge": 364}),
    "internvl": lambda: GotOcr2ImageProcessorPil(size=square(448)),
    "kosmos": lambda: clip(224, use_square_size=True),
    "kosmos_upstream": lambda: clip(224, use_square_size=True),
    "lfm2_vl": lambda: Siglip2ImageProcessorPil(),  # its own needs torchvision
    "llava": lambda: clip(336),
    "llava_onevision": lambda: LlavaOnevisionImageProcessorPil(size=square(384)),
    "moondream": lambda: moondream.make_image_processor(378),
    "paligemma": lambda: SiglipImageProcessorPil(size=square(224)),
    "paligemma_upstream": lambda: SiglipImageProcessorPil(size=square(224)),
    "paligemma2": lambda: SiglipImageProcessorPil(size=square(224)),
    "qwen2_5_vl": lambda: Qwen2VLImageProcessorPil(size=QWEN_AREA),
    "qwen3_5": lambda: Qwen2VLImageProcessorPil(size={"shortest_edge": 65536, "longest_edge": 65536}, patch_size=16),
    "qwen3_vl": lambda: Qwen2VLImageProcessorPil(size={"shortest_edge": 65536, "longest_edge": 65536}, patch_size=16),
    "qwen_vl": lambda: qwen_vl.make_image_processor(448),
    "smolvlm": lambda: SmolVLMImageProcessorPil(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}),
    "uform": lambda: uform.make_image_processor(336),
}
SIZES = {"gemma4": 768, "lfm2_vl": 256, "qwen2_5_vl": 224, "qwen3_5": 256, "qwen3_vl": 256}  # of families that read any
OWN_FIT = {"flamingo": Fit.crop, "llava": Fit.crop, "llava_onevision": Fit.pad}  # of frames that are not square


def own_pixels(processor, size, frame):
    """Return what an image processor makes of a frame, as one picture, without cutting it into tiles."""
    options = ("do_image_splitting", "crop_to_patches", "do_pan_and_scan")
    whole = {option: False for option in options if hasattr(processor, option)}
    alone = isinstance(processor, LlavaOnevisionImageProcessorPil)  # cuts an image into tiles unless it has company
    images = [[Image.fromarray(frame)] * 2] if alone else [Image.fromarray(frame)]
    pixels = processor(images=images, return_tensors="pt", **whole)["pixel_values"]
    if pixels.ndim == 3:  # patches, row by row, then padding
        side = size // processor.patch_size
        pixels = pixels[0, : side * side]
        return rearrange(pixels, "(h x) (p q c) -> c (h p) (x q)", x=side, q=processor.patch_size, c=3)
    if pixels.ndim == 2:  # patches of two equal frames, in blocks of 2 x 2
        patch = processor.patch_size
        pattern = "(h x i j) (c t p q) -> t c (h i p) (x j q)"
        return rearrange(pixels, pattern, i=2, j=2, c=3, t=2, p=patch, q=patch, h=size // patch // 2)[0]
    return pixels.reshape(-1, 3, *pixels.shape[-2:])[0]


@pytest.fixture(scope="module")
def real_frames(shared_data):
    """A camera on the wall and one in the hand of CALVIN (square), and a 640 x 480 one beside a Franka."""
    paths = sorted((shared_data / "calvin_mini" / "training").glob("episode_*.npz"))[::400]
    calvin = [np.load(path) for path in paths]
    video = shared_data / "lerobot_v21_franka_sim_internvla/sim_pick_place/videos/chunk-000/video.base_view"
    with av.open(video / "episode_000002.mp4") as container:
        franka = next(container.decode(video=0)).to_ndarray(format="rgb24")
    return [each["rgb_static"] for each in calvin], [each["rgb_gripper"] for each in calvin], [franka]


@pytest.mark.parametrize("name", NAMES)
def test_our_pixels_are_those_of_the_published_image_processor(name, real_frames):
    own, backbone = PUBLISHED[name](), BACKBONES.get(name).tiny()
    size = SIZES.get(name) or backbone.processor_size(own)[0]
    backbone.image_spec = ImageSpec(
        size=size, mean=tuple(own.image_mean), std=tuple(own.image_std), interpolation=Resampling(own.resample)
    )
    std = torch.tensor(backbone.image_spec.std)[:, None, None]
    *square_frames, oblong = real_frames
    keeps_shape = name in SIZES  # and makes a grid of other sides of a frame that is not square
    for frame in itertools.chain(*square_frames, [] if keeps_shape else oblong):
        wanted = own_pixels(own, size, frame)
        for resize in Resize:
            fit = OWN_FIT.get(name, Fit.stretch)
            processor = Processor(backbone, ["side"], max_text_tokens=8, resize=resize, fit=fit)
            frames = torch.from_numpy(processor.host_frames(frame[None]))[None]
            ids = torch.zeros(1, 1, dtype=torch.long)
            ours = processor.images(Batch(frames={"side": frames}, text_ids=ids, text_mask=ids == 0))[0, 0, 0]
            error = (ours - wanted).abs() * std * 255
            twice = own.resample == Resampling.LANCZOS  # these enlarge to longest_edge and shrink again
            mean, largest = (0.25, 10.1) if twice else (0.001, 0.01) if resize is Resize.host else (0.1, 2.1)
            assert error.mean() < mean
            assert error.max() < largest
