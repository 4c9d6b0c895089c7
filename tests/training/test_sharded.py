"""FSDP gathers the weights of every family around every entry of a policy, and changes no number."""

import copy

import pytest
import torch
import torch.distributed as dist
from robots import batch_of, policy_of
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from robovlms.registry import BACKBONES
from robovlms.training.parallel.sharded import layers_of, shard


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """One process is a group too: weights are spread and gathered, if only over itself."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def returned_by(model):
    """Return a list that collects what FSDP's modules return, with the number of times that it was written to."""
    found = []

    def note(_module, _inputs, output):
        found.extend((tensor, tensor._version) for tensor in tree_leaves(output) if isinstance(tensor, Tensor))

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.register_forward_hook(note)
    return found


@pytest.mark.parametrize("backbone", BACKBONES.names())
def test_losses_gradients_and_actions_of_every_family_are_those_of_whole_weights(backbone, mesh):
    policy = policy_of(backbone)
    batch = batch_of(policy)
    whole = copy.deepcopy(policy)
    model = shard(policy, mesh)
    assert all(isinstance(parameter, DTensor) for parameter in policy.parameters())
    returned = returned_by(model)
    for _ in range(2):  # the second step gathers again
        expected, losses = whole(batch), model(batch)
        assert losses["loss"].item() == pytest.approx(expected["loss"].item(), abs=1e-6)
        expected["loss"].backward()
        losses["loss"].backward()
    assert returned
    assert all(tensor._version == version for tensor, version in returned), "FSDP drops its hook where one writes to it"
    gradients = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for name, parameter in policy.named_parameters():
        ours, theirs = parameter.grad, gradients[name]
        assert (ours is None) == (theirs is None or not theirs.any()) or not theirs.any(), name
        assert ours is None or torch.allclose(ours.to_local(), theirs, atol=1e-6), name
    policy.eval(), whole.eval()
    assert torch.allclose(policy.predict(batch), whole.predict(batch), atol=1e-5)
    for tokens, expected in ((policy.encode(batch), whole.encode(batch)),):
        assert torch.allclose(tokens, expected, atol=1e-5)
    images = whole.processor.images(batch)
    assert torch.allclose(policy.backbone.encode(images), whole.backbone.encode(images), atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES.names())
def test_every_family_has_layers_that_are_gathered_one_by_one(backbone):
    model = BACKBONES.get(backbone).tiny()
    layers = layers_of(model)
    assert len(layers) >= 2
    inside = [id(parameter) for layer in layers for parameter in layer.parameters()]
    assert len(inside) == len(set(inside))
