"""Cross-entropy of words, a few tokens at a time."""

import pytest
import torch
import torch.nn.functional as F

from robovlms.policy.policy import TEXT_CHUNK, text_losses


@pytest.mark.parametrize("count", [1, TEXT_CHUNK - 1, TEXT_CHUNK, 2 * TEXT_CHUNK + 3])
def test_pieces_have_the_loss_and_gradients_of_the_whole_and_no_tensor_of_all_logits(count):
    torch.manual_seed(0)
    weight = torch.randn(50, 8, requires_grad=True)
    features, wanted = torch.randn(count, 8, requires_grad=True), torch.randint(0, 50, (count,))
    sizes = []

    def logits(some):
        made = F.linear(some, weight)
        sizes.append(len(made))
        return made

    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        found = text_losses(logits, features, wanted)
    assert max(sizes) <= TEXT_CHUNK
    assert max(kept, default=0) < 50 * max(count, 9)
    mine = torch.autograd.grad(found["text_loss"], (features, weight))
    whole = F.linear(features, weight)
    theirs = torch.autograd.grad(F.cross_entropy(whole, wanted), (features, weight))
    torch.testing.assert_close(found["text_loss"], F.cross_entropy(whole, wanted), rtol=1e-6, atol=0)
    assert found["text_accuracy"] == pytest.approx((whole.argmax(-1) == wanted).float().mean().item())
    for left, right in zip(mine, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)
