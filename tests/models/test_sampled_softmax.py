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
        "own": torch.randint(-1, pool, (ROWS,)),
        "weight": torch.rand(ROWS),
    }
    vectors = [torch.randn(n, D) * 3 for n in (ROWS, ROWS, pool)]
    found = []
    for loss in (softmax_loss, softmax_loss_slowly):
        users, target, items = (v.clone().requires_grad_() for v in vectors)
        value = loss(users, target, pool=items, **given)
        (2 * value).backward()
        found.append((value, users.grad, target.grad, items.grad))
    for ours, slow in zip(*found):
        torch.testing.assert_close(ours, slow, atol=1e-5, rtol=1e-5)


def test_large_scores_overflow_nothing():
    users, target, pool = (torch.full((2, 2), s, requires_grad=True) for s in (1e4, -1e4, 1e4))
    loss = softmax_loss(
        users, target, pool=pool, log_expected=torch.zeros(2), own=torch.tensor([-1, 0]), weight=torch.ones(2)
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(users.grad).all()


def test_it_is_exact_where_a_gpu_trains_in_bfloat16():
    """Its products mixed both kinds of numbers, and nothing could be trained."""
    torch.manual_seed(0)
    given = {"log_expected": torch.zeros(POOL), "own": torch.full((ROWS,), -1), "weight": torch.ones(ROWS)}
    found = []
    for half in (False, True):
        torch.manual_seed(1)
        users, target, pool = (torch.randn(n, D, requires_grad=True) for n in (ROWS, ROWS, POOL))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = softmax_loss(users, target, pool=pool, **given)
        loss.backward()
        found.append((loss, users.grad, pool.grad))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)
