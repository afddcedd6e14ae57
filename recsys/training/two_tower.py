"""The training loop of the two-tower model: one run forwards through time, a snapshot at each cutoff.

Decides what an example is (one order: the history strictly before it predicts its items), how recent
orders are favored, and that a later cutoff continues from the earlier one instead of starting anew;
a snapshot has seen no event at or after its cutoff. Plain torch: runs alone, or on each rank of an
initialized `torch.distributed` group (gradients averaged, the same steps on every rank). No Ray.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed

from recsys.features.histories import histories_at
from recsys.features.views import USER_FEATURES, user_features
from recsys.interactions import Interactions, Tokens
from recsys.models.two_tower import TwoTower
from recsys.models.two_tower_settings import TowerSnapshot, TwoTowerTraining
from recsys.types import DAY, offsets_of, ragged_index


@dataclass(frozen=True, slots=True)
class Examples:
    """One example for each order, by time; its lines are the runs of `line_item`."""

    user: np.ndarray  # int32 [E]
    time: np.ndarray  # int64 [E]
    offsets: np.ndarray  # int32 [E + 1]
    line_item: np.ndarray  # int32 [L]
    line_new: np.ndarray  # bool [L] the user had not bought it before this order


def order_examples(interactions: Interactions) -> Examples:
    """The orders of the log, oldest first; an item on several lines of an order counts once."""
    log = interactions.histories
    user = log.request
    by_order = np.lexsort((log.item, log.order, user))
    same = np.zeros(len(user), bool)
    u, o, i = user[by_order], log.order[by_order], log.item[by_order]
    same[1:] = (u[1:] == u[:-1]) & (o[1:] == o[:-1]) & (i[1:] == i[:-1])
    rows = by_order[~same]
    user, order, item = user[rows], log.order[rows], log.item[rows]
    start = np.ones(len(rows), bool)
    start[1:] = (user[1:] != user[:-1]) | (order[1:] != order[:-1])
    first = np.flatnonzero(start)
    time = np.minimum.reduceat(log.time[rows], first) if len(first) else np.zeros(0, np.int64)
    counts = np.diff(np.append(first, len(rows)))
    by_pair = np.lexsort((np.repeat(time, counts), item, user))  # the first order of each pair is news
    new = np.zeros(len(rows), bool)
    fresh = np.ones(len(rows), bool)
    fresh[1:] = (user[by_pair][1:] != user[by_pair][:-1]) | (item[by_pair][1:] != item[by_pair][:-1])
    new[by_pair[fresh]] = True
    by_time = np.argsort(time, kind="stable")
    lines = ragged_index(first[by_time], counts[by_time])
    return Examples(
        user=user[first[by_time]].astype(np.int32),
        time=time[by_time],
        offsets=offsets_of(counts[by_time]),
        line_item=item[lines],
        line_new=new[lines],
    )


def train_two_tower(
    interactions: Interactions,
    *,
    tokens: Tokens,
    category: np.ndarray,
    cutoffs: Sequence[int],
    sizes: Sequence[int],
    settings: TwoTowerTraining,
    seed: int,
    progress: Callable[[int, int, float], None] | None = None,
) -> Iterator[TowerSnapshot]:
    """A `TowerSnapshot` for each of `cutoffs` (epoch seconds, ascending), trained on earlier events only.

    `sizes` says how many leading item rows each snapshot covers: those published before its cutoff.

    `tokens` are the hashed title words and `category` int32 [V] the categories of all V items.
    `progress(step, steps, loss)` is called after each step. Raises ValueError for cutoffs that do not
    ascend or that no order precedes.
    """
    if list(cutoffs) != sorted(set(cutoffs)):
        raise ValueError(f"cutoffs must ascend, got {list(cutoffs)}")
    examples = order_examples(interactions)
    if not len(examples.time) or examples.time[0] >= cutoffs[0]:
        raise ValueError(f"no order before the first cutoff {cutoffs[0]}: nothing to train on")
    rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if _parallel() else (0, 1)
    features = _example_features(interactions, examples, category, settings, until=cutoffs[-1])
    torch.manual_seed(seed)
    known = examples.time < cutoffs[0]
    model = TwoTower(
        items=interactions.items,
        tokens_offsets=tokens.offsets,
        tokens=tokens.id,
        **_standardization(features[known]),
        settings=settings.model,
    )
    draw = np.random.default_rng(seed)  # alike on every rank, so that each takes its share of one batch
    own = torch.Generator().manual_seed(seed * 1000 + rank)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    total = settings.steps + settings.steps_more * (len(cutoffs) - 1)
    done = 0
    for cutoff, size in zip(cutoffs, sizes, strict=True):
        steps = settings.steps if cutoff == cutoffs[0] else settings.steps_more
        chance, kept = _chances(examples, cutoff, settings)
        cumulative = np.cumsum(chance)
        probability = _target_probability(examples, chance, kept, settings.targets, interactions.items)
        losses = []
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * (1 - 0.9 * step / steps)
            picked = np.searchsorted(cumulative, draw.random(settings.batch) * cumulative[-1], side="right")
            mine = np.minimum(picked[rank::ranks], len(chance) - 1)
            loss = _loss(model, interactions, examples, mine, features, kept, probability, settings, own)
            optimizer.zero_grad()
            loss.backward()
            if ranks > 1:
                _average_gradients(model, ranks)
            optimizer.step()
            losses.append(float(loss.detach()))
            done += 1
            if progress:
                progress(done, total, losses[-1])
        yield TowerSnapshot(
            cutoff, model.item_vectors(size), model.export(size), float(np.mean(losses[-20:]))
        )


def _parallel() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _average_gradients(model: torch.nn.Module, ranks: int) -> None:
    """One all-reduce of all gradients, flattened."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    distributed.all_reduce(flat)
    flat /= ranks
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def _example_features(
    interactions: Interactions,
    examples: Examples,
    category: np.ndarray,
    settings: TwoTowerTraining,
    *,
    until: int,
) -> np.ndarray:
    """`USER_FEATURES` just before each order, float32 [E, F]; in blocks, to bound memory. Orders from
    `until` on are never drawn and stay NaN."""
    table = np.full((len(examples.time), len(USER_FEATURES)), np.nan, np.float32)
    for start in range(0, int((examples.time < until).sum()), 4096):
        rows = slice(start, start + 4096)
        histories = histories_at(interactions, users=examples.user[rows], now=examples.time[rows])
        table[rows] = user_features(histories, now=examples.time[rows], category=category)
    return table


def _standardization(features: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and deviation of log(1 + |x|); a category code is no quantity and gets scale inf (not used)."""
    logs = np.log1p(np.abs(features))
    with np.errstate(invalid="ignore"):
        mean = np.nan_to_num(np.nansum(logs, axis=0) / np.maximum((~np.isnan(logs)).sum(axis=0), 1))
        scale = np.sqrt(np.nansum((logs - mean) ** 2, axis=0) / np.maximum((~np.isnan(logs)).sum(axis=0), 1))
    scale = np.maximum(scale, 0.1)
    scale[USER_FEATURES.index("top_category")] = np.inf
    return {"feature_mean": mean.astype(np.float32), "feature_scale": scale.astype(np.float32)}


def _chances(examples: Examples, cutoff: int, settings: TwoTowerTraining) -> tuple[np.ndarray, np.ndarray]:
    """Chance of each example to be drawn (0 at or after the cutoff, or with no target at all), float64
    [E], and the weight of each line as a target, float64 [L]."""
    kept = np.where(examples.line_new, 1.0, settings.repeat_share)
    age = (cutoff - examples.time) / DAY
    owner = np.repeat(np.arange(len(examples.time)), np.diff(examples.offsets))
    weight = np.bincount(owner, kept, len(age))
    chance = np.where(age > 0, np.exp2(-np.maximum(age, 0) / settings.example_half_life_days), 0)
    return chance * np.minimum(weight, settings.targets), kept


def _target_probability(
    examples: Examples, chance: np.ndarray, kept: np.ndarray, targets: int, items: int
) -> np.ndarray:
    """Probability of each item among the drawn targets, float64 [V]: the Q of the logQ correction."""
    owner = np.repeat(np.arange(len(chance)), np.diff(examples.offsets))
    weight = np.bincount(owner, kept, len(chance))
    expected = kept * np.minimum(1, targets / np.maximum(weight, 1e-9))[owner]
    total = np.bincount(examples.line_item, expected * chance[owner], items)
    return total / total.sum()


def _loss(
    model: TwoTower,
    interactions: Interactions,
    examples: Examples,
    picked: np.ndarray,
    features: np.ndarray,
    kept: np.ndarray,
    probability: np.ndarray,
    settings: TwoTowerTraining,
    generator: torch.Generator,
) -> torch.Tensor:
    """Loss of the examples `picked` [b]: draws their targets and masks what is no negative."""
    now = examples.time[picked]
    histories = histories_at(
        interactions, users=examples.user[picked], now=now, max_history=settings.max_history
    )
    counts = np.diff(examples.offsets)[picked]
    lines = ragged_index(examples.offsets[picked], counts)
    owner = np.repeat(np.arange(len(picked)), counts)
    items = examples.line_item[lines]
    # weighted draw without replacement (Efraimidis and Spirakis): the largest u^(1/w) of each order
    u = torch.rand(len(lines), generator=generator, dtype=torch.float64).numpy()
    key = np.log(u) / np.maximum(kept[lines], 1e-9)
    key[u > np.where(kept[lines] < 1, kept[lines], 1)] -= 1e12  # a repeat is a target with its chance only
    order = np.lexsort((-key, owner))
    position = np.arange(len(order)) - (np.cumsum(counts) - counts)[owner[order]]
    chosen = order[(position < settings.targets) & (key[order] > -1e11)]
    return model.loss(
        histories,
        now=now,
        user_features=features[picked],
        targets_offsets=offsets_of(np.bincount(owner[chosen], minlength=len(picked))),
        targets=items[chosen],
        sampled=items[chosen],
        masked=(
            np.concatenate((histories.request, owner)),
            np.concatenate((histories.item, items)),
        ),
        probability=probability,
        generator=generator,
    )
