"""Our pixels are those of the published checkpoints' own image processors, at their sizes, on real frames."""

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
from robovlms.config.choices import Fit
from robovlms.registry import BACKBONES

NAMES = [name for name in BACKBONES.names() if name != "nano"]


def square(side):
    return {"height": side, "width": side}


def clip(size, **options):
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square(size), **options)


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
QWEN_AREA = {"shortest_edge": 224 * 224, "longest_edge": 224 * 224}  # for frames of any size to become 224 px
PUBLISHED = {  # the image processors that preprocessor_config.json of the published checkpoints describe, from memory
    "flamingo": lambda: clip(224),
    "flamingo_upstream": lambda: clip(224),
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
OWN_FIT = {  # of frames that are not square
    "flamingo": Fit.crop, "flamingo_upstream": Fit.crop, "llava": Fit.crop, "llava_onevision": Fit.pad
}  # fmt: skip
