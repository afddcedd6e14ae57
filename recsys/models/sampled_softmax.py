"""Softmax over a pool of items, with its gradients, a block of rows at a time.

Decides how the largest product of a training step is made: forward computes the gradients at once, so
that no block of logits leaves the cache and none is kept (as the fused linear cross-entropy of Liger
Kernel, Hsu et al. 2024). `softmax_loss_slowly` is the same by its definition.
"""

import torch
from torch import Tensor
from torch.nn import functional

_BLOCK = 1 << 19  # logits that are held at once on a CPU; 2 MB


def softmax_loss(
    users: Tensor, target: Tensor, *, pool: Tensor, log_expected: Tensor, own: Tensor, weight: Tensor
) -> Tensor:
    """Mean over P rows, by `weight` [P], of -log of the target's share; a scalar.

    `users` [P, d] and the vectors of their `target` [P, d] and of a `pool` [N, d] of items, each of which
    stands for as many as `log_expected` [N], the log of how often it was to be expected there, says.
    `own` int64 [P] is where the target stands in the pool, in which it counts as the target alone; -1 =
    nowhere. Without any weight it is 0.
    """
    with torch.autocast(users.device.type, enabled=False):  # sums of exponentials want all digits
        found: Tensor = _SoftmaxLoss.apply(
            users.float(), target.float(), pool.float(), log_expected, own, weight
        )
    return found


def softmax_loss_slowly(
    users: Tensor, target: Tensor, *, pool: Tensor, log_expected: Tensor, own: Tensor, weight: Tensor
) -> Tensor:
    """`softmax_loss` by its definition. For tests."""
    logits = users @ pool.T - log_expected
    hidden = functional.one_hot(own + 1, len(pool) + 1)[:, 1:].bool()
    logits = torch.cat(((users * target).sum(1, keepdim=True), logits.masked_fill(hidden, -torch.inf)), 1)
    return -(torch.log_softmax(logits, 1)[:, 0] * weight).sum() / weight.sum()


class _SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        context, users, target, pool, log_expected, own, weight
    ):
        share = weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
        of_users, of_pool = torch.empty_like(users), torch.zeros_like(pool)
        positive = (users * target).sum(1)
        log_total = torch.empty_like(positive)
        size = len(users) if users.is_cuda else max(1, _BLOCK // max(len(pool), 1))
        for start in range(0, len(users), size):
            rows = slice(start, start + size)
            logits = torch.addmm(-log_expected, users[rows], pool.T)
            inside = torch.nonzero(own[rows] >= 0)[:, 0]
            logits[inside, own[rows][inside]] = -torch.inf
            largest = torch.maximum(logits.amax(1), positive[rows]) if len(pool) else positive[rows]
            logits.sub_(largest[:, None]).exp_()
            total = logits.sum(1) + torch.exp(positive[rows] - largest)
            log_total[rows] = torch.log(total) + largest
            scale = (share[rows] / total)[:, None]
            of_users[rows] = (logits @ pool) * scale
            of_pool.addmm_(logits.T, users[rows] * scale)
        of_positive = ((torch.exp(positive - log_total) - 1) * share)[:, None]
        of_users.addcmul_(target, of_positive)
        context.save_for_backward(of_users, users * of_positive, of_pool)
        return ((log_total - positive) * share).sum()

    @staticmethod
    def backward(context, gradient):  # type: ignore[no-untyped-def]
        return *(gradient * of for of in context.saved_tensors), None, None, None
