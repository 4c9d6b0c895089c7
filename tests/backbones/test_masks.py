"""What is attended to without a mask is what is attended to with one, bit for bit."""

import pytest
import torch
from test_backbones import inputs, tiny
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from robovlms.backbones import huggingface
from robovlms.backbones.families import gemma4, idefics3, smolvlm
from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.registry import BACKBONES

NAMES = [name for name in BACKBONES.names() if issubclass(BACKBONES.get(name), HuggingFaceBackbone)]


def read_with_masks(*unused):
    """Stand for `without_reading`: transformers makes its masks, and looks at them to see whether it may not."""


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_that_transformers_own_masks_give_bit_for_bit(name, monkeypatch):
    given = inputs(tiny(name), t=2, v=2, q=2)
    backbone = tiny(name).eval()
    features = backbone(*given)
    for module in (huggingface, gemma4, idefics3, smolvlm):
        monkeypatch.setattr(module, "without_reading", read_with_masks)
    monkeypatch.setattr(HuggingFaceBackbone, "attention_mask", lambda self, embeds, layout: layout.mask.long())
    masked = tiny(name).eval()
    masked.load_state_dict(backbone.state_dict())
    assert torch.equal(masked(*given), features)


@pytest.mark.parametrize("side", [4, 8, 2])
def test_learned_positions_are_mixed_as_transformers_mixes_them(side):
    backbone = tiny("qwen3_vl")
    tower = backbone.model.visual
    grid = torch.tensor([[1, side, side]] * 3)
    options = {"mode": "bilinear", "align_corners": True, "spatial_merge_size": 2}
    entries, shares = get_vision_interpolation_indices_and_weights(grid, tower.num_grid_per_side, **options)
    ours = backbone.geometry(3, side, torch.device("cpu"))
    assert torch.equal(ours["interp_indices"], entries)
    torch.testing.assert_close(ours["interp_weights"], shares, rtol=0, atol=1e-6)
