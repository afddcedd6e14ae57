"""Softmax over a pool of items, with its gradients, a block of rows at a time.

Decides how the largest product of a training step is made: forward computes the gradients at once, so
that no block of logits leaves the cache and none is kept (as the fused linear cross-entropy of Liger
Kernel, Hsu et al. 2024). `softmax_loss_slowly` is the same by its definition.
"""

import torch
from torch import Tensor

_BLOCK = 1 << 19  # logits that are held at once on a CPU; 2 MB


def softmax_loss(
    users: Tensor, certain: Tensor, *, pool: Tensor, log_expected: Tensor, hidden: Tensor, weight: Tensor
) -> Tensor:
    """Mean over P rows, by `weight` [P], of -log of the target's share; a scalar.

    What a row's target is told from: `certain` [P, K], the logits of those who are there in any case, the
    target's own first, -inf = nobody; and for the rest a `pool` [N, d] of vectors, each of which stands for
    as many as `log_expected` [N], the log of how often it was to be expected there, says. `hidden` int64 [Z]
    are the pairs that don't count, as positions in [P, N], ascending. Without any weight it is 0.
    """
    found: Tensor = _SoftmaxLoss.apply(users, certain, pool, log_expected, hidden, weight)
    return found


def softmax_loss_slowly(
    users: Tensor, certain: Tensor, *, pool: Tensor, log_expected: Tensor, hidden: Tensor, weight: Tensor
) -> Tensor:
    """`softmax_loss` by its definition. For tests."""
    drawn = users @ pool.T - log_expected
    drawn = drawn.flatten().index_fill(0, hidden, -torch.inf).view_as(drawn)
    share = torch.log_softmax(torch.cat((certain, drawn), 1), 1)[:, 0]
    return -(share * weight).sum() / weight.sum()


class _SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        context, users, certain, pool, log_expected, hidden, weight
    ):
        users, certain, pool = users.float(), certain.float(), pool.float()
        share = weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
        of_users, of_pool = torch.empty_like(users), torch.zeros_like(pool)
        largest_certain = certain.amax(1)
        log_total = torch.empty_like(largest_certain)
        size = len(users) if users.is_cuda else max(1, _BLOCK // max(len(pool), 1))
        starts = range(0, len(users), size)
        bounds = torch.tensor([*starts, len(users)], device=hidden.device) * len(pool)
        cuts = torch.searchsorted(hidden, bounds).tolist()
        for start, first, last in zip(starts, cuts, cuts[1:]):
            rows = slice(start, start + size)
            logits = torch.addmm(-log_expected, users[rows], pool.T)
            logits.view(-1)[hidden[first:last] - start * len(pool)] = -torch.inf
            largest = largest_certain[rows]
            largest = torch.maximum(logits.amax(1), largest) if len(pool) else largest
            logits.sub_(largest[:, None]).exp_()
            total = logits.sum(1) + torch.exp(certain[rows] - largest[:, None]).sum(1)
            log_total[rows] = torch.log(total) + largest
            scale = (share[rows] / total)[:, None]
            of_users[rows] = (logits @ pool) * scale
            of_pool.addmm_(logits.T, users[rows] * scale)
        of_certain = torch.exp(certain - log_total[:, None])
        of_certain[:, 0] -= 1
        context.save_for_backward(of_users, of_certain * share[:, None], of_pool)
        return ((log_total - certain[:, 0]) * share).sum()

    @staticmethod
    def backward(context, gradient):  # type: ignore[no-untyped-def]
        return *(gradient * of for of in context.saved_tensors), None, None, None
