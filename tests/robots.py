"""Tiny policies of every family, and a batch that they can learn from."""

import numpy as np
import torch
from small_heads import small_head

from robovlms.config.choices import Structure
from robovlms.heads.base import HeadSizes
from robovlms.images.processor import Processor
from robovlms.policy.policy import VLAPolicy
from robovlms.registry import BACKBONES, HEADS
from robovlms.types import Batch

WINDOW, CHUNK, ACTIONS, VIEWS = 2, 3, 7, ["side", "wrist"]


def policy_of(backbone_name: str, head_name: str = "mlp") -> VLAPolicy:
    """Return a policy with random weights, the same at every call, in evaluation mode (no dropout)."""
    torch.manual_seed(0)
    backbone = BACKBONES.get(backbone_name).tiny()
    sizes = HeadSizes(
        feature_dim=backbone.hidden_dim, action_dim=ACTIONS, binary=(ACTIONS - 1,), window_size=WINDOW, chunk_size=CHUNK
    )
    head = HEADS.get(head_name)(small_head(head_name), sizes)
    torch.nn.init.normal_(head.query, std=0.5)
    return VLAPolicy(backbone, head, Structure.policy_head, Processor(backbone, VIEWS, max_text_tokens=64)).eval()


def batch_of(policy: VLAPolicy, rows: int = 2) -> Batch:
    """Return random frames with two instructions, and actions for every frame of the window."""
    generator = np.random.default_rng(0)
    frames = {
        view: torch.from_numpy(generator.integers(0, 256, (rows, WINDOW, size, size, 3), dtype=np.uint8))
        for view, size in (("side", 40), ("wrist", 24))
    }
    ids, mask = policy.processor.text(["open the drawer", "put the small red block down"][:rows])
    actions = torch.from_numpy(generator.uniform(-1, 1, (rows, WINDOW, CHUNK, ACTIONS)).astype(np.float32))
    actions[..., -1] = (actions[..., -1] > 0).float() * 2 - 1
    mask_of_actions = torch.ones(rows, WINDOW, CHUNK, dtype=torch.bool)
    return Batch(frames=frames, text_ids=ids, text_mask=mask, actions=actions, action_mask=mask_of_actions)
