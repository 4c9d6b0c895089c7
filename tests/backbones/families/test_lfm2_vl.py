"""LFM2-VL: a published folder, whose image processor needs torchvision, and what its vision tower makes of any size."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import Lfm2VlForConditionalGeneration, Lfm2VlModel

from robovlms.backbones.families.lfm2_vl import Lfm2Vl
from robovlms.config.policy import BackboneConfig

PUBLISHED = {  # preprocessor_config.json of LiquidAI/LFM2-VL-450M, from memory
    "image_processor_type": "Lfm2VlImageProcessorFast", "processor_class": "Lfm2VlProcessor",
    "do_image_splitting": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
    "downsample_factor": 2, "encoder_patch_size": 16, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    "max_image_tokens": 256, "max_num_patches": 1024, "max_pixels_tolerance": 2.0, "max_tiles": 10,
    "min_image_tokens": 64, "min_tiles": 2, "resample": 2, "rescale_factor": 1 / 255, "tile_size": 512,
    "size": {"height": 512, "width": 512}, "use_thumbnail": True,
}  # fmt: skip


def with_config(**vision):
    backbone = Lfm2Vl.tiny()
    backbone.model.config.vision_config.update(vision)
    return Lfm2Vl(Lfm2VlModel(backbone.model.config), backbone.tokenizer, backbone.image_processor).eval()


def test_a_published_folder_is_read_without_torchvision(tmp_path):
    Lfm2Vl.tiny().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
    full = Lfm2VlForConditionalGeneration(Lfm2Vl.tiny().model.config)
    older = {  # as transformers named them when the weights were published
        key.replace("vision_tower.", "vision_tower.vision_model."): value.clone()
        for key, value in full.state_dict().items()
        if key != "lm_head.weight"
    }
    save_file(older, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = BackboneConfig(name="lfm2_vl", checkpoint=str(tmp_path))
    backbone = Lfm2Vl.from_config(config)
    for key, value in full.model.state_dict().items():
        assert torch.equal(backbone.model.state_dict()[key], value), key
    assert backbone.image_spec.size == 256
    backbone.save_pretrained(tmp_path / "again")
    again = Lfm2Vl.from_config(BackboneConfig(name="lfm2_vl", checkpoint=str(tmp_path / "again")))
    assert again.image_spec == backbone.image_spec
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PUBLISHED, "min_image_tokens": 256}))
    assert Lfm2Vl.from_config(config).image_spec.size == 512


def test_an_image_processor_of_other_patches_is_refused():
    backbone = Lfm2Vl.tiny()
    backbone.image_processor.patch_size = 14
    with pytest.raises(ValueError, match=r"patches of 14 px and merges 2 x 2 of them, but the model wants 16 px and 2"):
        Lfm2Vl(backbone.model, backbone.tokenizer, backbone.image_processor)


@torch.no_grad()
@pytest.mark.parametrize("num_patches", [9, 16, 25])  # the tower's own grid; ours has 4 x 4
def test_image_tokens_are_the_familys_own(num_patches):
    backbone = with_config(num_patches=num_patches)
    images = torch.randn(2, 3, 64, 64)
    ones, shapes = torch.ones(2, 16, dtype=torch.long), torch.full((2, 2), 4)
    own = backbone.model.get_image_features(backbone.cut(images), shapes, ones).pooler_output
    tokens = backbone.embed_images(images)[:, 1:-1]
    torch.testing.assert_close(tokens, torch.stack(own), rtol=0, atol=1e-5)


def test_a_pooling_head_is_frozen():
    backbone = with_config(vision_use_head=True)
    frozen = {key.split(".")[2] for key, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"head"}
