"""The loss in blocks, with gradients of its own, and the loss by its definition."""

import pytest
import torch

from recsys.models import sampled_softmax
from recsys.models.sampled_softmax import softmax_loss, softmax_loss_slowly

ROWS, POOL, D = 23, 11, 5


@pytest.mark.parametrize("pool", [POOL, 1, 0])
@pytest.mark.parametrize("block", [1 << 20, 3 * POOL])
def test_it_is_the_loss_by_its_definition_and_so_are_its_gradients(pool, block, monkeypatch):
    monkeypatch.setattr(sampled_softmax, "_BLOCK", block)
    torch.manual_seed(0)
    given = {
        "log_expected": torch.randn(pool),
        "hidden": torch.nonzero(torch.rand(ROWS * pool) < 0.2)[:, 0],
        "weight": torch.rand(ROWS),
    }
    certain = torch.randn(ROWS, 3)
    certain[::2, 1], certain[::3, 2] = -torch.inf, -torch.inf
    given_vectors = (torch.randn(ROWS, D) * 3, certain, torch.randn(pool, D) * 3)
    found = []
    for loss in (softmax_loss, softmax_loss_slowly):
        users, singled, items = (v.clone().requires_grad_() for v in given_vectors)
        value = loss(users, singled, pool=items, **given)
        (2 * value).backward()
        found.append((value, users.grad, singled.grad, items.grad))
    for ours, slow in zip(*found):
        torch.testing.assert_close(ours, slow, atol=1e-5, rtol=1e-5)


def test_large_scores_overflow_nothing():
    users, pool = (torch.full((2, 2), 1e4, requires_grad=True) for _ in range(2))
    loss = softmax_loss(
        users,
        torch.tensor([[-2e8, -torch.inf], [-2e8, 2e8]]),
        pool=pool,
        log_expected=torch.zeros(2),
        hidden=torch.tensor([2]),
        weight=torch.ones(2),
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(users.grad).all()
