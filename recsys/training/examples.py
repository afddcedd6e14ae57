"""What a user tower learns from: a history, and targets that it should have led to.

Two kinds, and both `Together`. `NextOrders`: an order is predicted from the history strictly before it,
as a request is served. `LeftOut`: some of a user's events are targets and the rest is the history, for
logs without an order, or where what is asked for lies anywhere in time. Decides how examples are drawn,
and which items are no negatives of whom; a batch is drawn by whole columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from recsys.features.histories import histories_at
from recsys.interactions import Interactions
from recsys.types import DAY, Histories, offsets_of, ragged_index


@dataclass(frozen=True, slots=True)
class Drawn:
    """B examples. Ragged by `owner`, which ascends."""

    user: np.ndarray  # int64 [B] codes
    now: np.ndarray  # int64 [B]
    histories: Histories  # [B]
    example: np.ndarray  # int64 [B] numbers, for columns that were computed before
    owner: np.ndarray  # int64 [P] the example of each target
    target: np.ndarray  # int32 [P] item rows
    weight: np.ndarray  # float32 [P] how much it says
    hidden_owner: np.ndarray  # int64 [Z] pairs of example and item
    hidden: np.ndarray  # int32 [Z] that are no negatives


class Examples(Protocol):
    @property
    def chance(self) -> np.ndarray:
        """Of each example to be drawn, up to a factor, float64 [E]."""
        ...

    def draw(self, picked: np.ndarray, rng: np.random.Generator) -> Drawn:
        """The examples `picked` [b]; which of their items are targets is chance."""
        ...

    def expected(self, items: int) -> np.ndarray:
        """Share of each item among all drawn targets, float64 [V]: the Q of a logQ correction."""
        ...

    def length(self) -> float:
        """Mean number of events in a drawn history."""
        ...


def spread(chance: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """`draws` examples by chance, int64, shuffled: each as often as is expected, give or take one
    (systematic sampling), so that an epoch of all leaves none out."""
    cumulative = np.cumsum(chance)
    at = (np.arange(draws) + rng.random()) / draws * cumulative[-1]
    picked = np.minimum(np.searchsorted(cumulative, at, side="right"), len(chance) - 1)
    return rng.permutation(picked)


@dataclass(frozen=True, slots=True)
class Orders:
    """The orders of a log, by time; their lines are the runs of `line_item`."""

    user: np.ndarray  # int32 [E]
    time: np.ndarray  # int64 [E]
    offsets: np.ndarray  # int32 [E + 1]
    line_item: np.ndarray  # int32 [L]
    line_new: np.ndarray  # bool [L] the user had not taken it before this order
    line_weight: np.ndarray  # float32 [L] the largest weight of the order's events of this item

    @property
    def owner(self) -> np.ndarray:
        """The order of each line, int64 [L]."""
        return np.repeat(np.arange(len(self.time)), np.diff(self.offsets))


def orders_of(interactions: Interactions) -> Orders:
    """The orders of the log, oldest first; an item on several lines of an order counts once."""
    log = interactions.histories
    user, weight = log.request, interactions.weights
    by_order = np.lexsort((-weight, log.item, log.order, user))
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
    return Orders(
        user=user[first[by_time]].astype(np.int32),
        time=time[by_time],
        offsets=offsets_of(counts[by_time]),
        line_item=item[lines],
        line_new=new[lines],
        line_weight=weight[rows][lines],
    )


@dataclass(frozen=True, slots=True)
class NextOrders:
    """Orders before `cutoff` as examples: the history strictly before one predicts its items."""

    interactions: Interactions
    orders: Orders
    chance: np.ndarray  # float64 [E]
    kept: np.ndarray  # float64 [L] chance of each line to be a target
    targets: int  # of one example, at most
    max_history: int  # newest events of one example
    hide_history: bool  # what is in the history is no negative; else only the order itself is none

    @classmethod
    def until(
        cls,
        cutoff: int | None,
        *,
        interactions: Interactions,
        orders: Orders,
        half_life_days: float,
        repeat_share: float,
        targets: int,
        max_history: int,
        hide_history: bool,
    ) -> "NextOrders":
        """An order's chance halves with each half-life of its age at `cutoff` (None = all orders count,
        from the newest), and is 0 if none of its lines can be a target."""
        cutoff = int(orders.time.max(initial=0)) + 1 if cutoff is None else cutoff
        kept = np.where(orders.line_new, 1.0, repeat_share)
        age = (cutoff - orders.time) / DAY
        weight = np.bincount(orders.owner, kept, len(age))
        chance = np.where(age > 0, np.exp2(-np.maximum(age, 0) / half_life_days), 0)
        chance = chance * np.minimum(weight, targets)
        return cls(interactions, orders, chance, kept, targets, max_history, hide_history)

    def draw(self, picked: np.ndarray, rng: np.random.Generator) -> Drawn:
        orders, now = self.orders, self.orders.time[picked]
        users = orders.user[picked]
        histories = histories_at(self.interactions, users=users, now=now, max_history=self.max_history)
        counts = np.diff(orders.offsets)[picked]
        lines = ragged_index(orders.offsets[picked], counts)
        owner = np.repeat(np.arange(len(picked)), counts)
        possible = rng.random(len(lines)) < self.kept[lines]
        by_chance = np.lexsort((rng.random(len(lines)), ~possible, owner))
        position = np.arange(len(lines)) - (np.cumsum(counts) - counts)[owner[by_chance]]
        chosen = by_chance[(position < self.targets) & possible[by_chance]]
        items = orders.line_item[lines]
        hidden = (histories.request, histories.item) if self.hide_history else (owner[:0], items[:0])
        return Drawn(
            user=users.astype(np.int64),
            now=now,
            histories=histories,
            example=picked,
            owner=owner[chosen],
            target=items[chosen],
            weight=orders.line_weight[lines][chosen],
            hidden_owner=np.concatenate((hidden[0], owner)),
            hidden=np.concatenate((hidden[1], items)),
        )

    def length(self) -> float:
        orders, log = self.orders, self.interactions.histories
        # Of a user's n events the orders stand evenly in front of all: n / 2 on average.
        events = np.minimum(log.counts[orders.user] / 2, self.max_history)
        return float(np.average(events, weights=self.chance)) if self.chance.any() else 0.0

    def expected(self, items: int) -> np.ndarray:
        owner = self.orders.owner
        weight = np.bincount(owner, self.kept, len(self.chance))
        drawn = self.kept * np.minimum(1, self.targets / np.maximum(weight, 1e-9))[owner]
        total = np.bincount(self.orders.line_item, drawn * self.chance[owner], items)
        return total / total.sum()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Users as examples: a share of a user's events is left out of the history and is to be found."""

    interactions: Interactions
    chance: np.ndarray  # float64 [U]
    left_out: np.ndarray  # float64 [M] chance of each event to be a target
    max_history: int  # events of one example; of more, that many at random
    repeats: bool  # somebody took the same item twice
    blank: float = 0.02  # share of examples without any history: what somebody new is answered

    @classmethod
    def of(
        cls, interactions: Interactions, *, share: float, max_history: int, half_life_days: float = np.inf
    ) -> "LeftOut":
        """Each user with an event is one example. The chance of a user halves with each half-life between
        the user's newest event and the log's, that of an event to be left out with each half-life
        before the user's newest."""
        log = interactions.histories
        distinct = np.unique(log.request * interactions.items + log.item)
        newest = np.full(len(log), -(2**62))
        np.maximum.at(newest, log.request, log.time)
        age = (log.time.max(initial=0) - newest) / DAY
        chance = np.where(log.counts > 0, np.exp2(-age / half_life_days), 0.0)
        older = (newest[log.request] - log.time) / DAY
        left_out = share * np.exp2(-older / half_life_days)
        return cls(interactions, chance, left_out, max_history, len(distinct) < len(log.item))

    def draw(self, picked: np.ndarray, rng: np.random.Generator) -> Drawn:
        log, weight = self.interactions.histories, self.interactions.weights
        counts = log.counts[picked]
        rows = ragged_index(log.offsets[picked], counts)
        owner = np.repeat(np.arange(len(picked)), counts)
        # One event at least is a target: a random one of each user, and others by chance.
        first = (np.cumsum(counts) - counts) + (rng.random(len(picked)) * counts).astype(np.int64)
        target = rng.random(len(rows)) < np.maximum(self.left_out[rows] - (1 / counts)[owner], 0)
        target[first] = True
        seen = ~target & (rng.random(len(picked)) >= self.blank)[owner]
        seen &= rng.random(len(rows)) < (self.max_history / np.maximum(counts, 1))[owner]
        if self.repeats:  # a target is in no other event of the history
            pair = owner * self.interactions.items + log.item[rows]
            seen &= ~np.isin(pair, pair[target])
        kept = log.take(picked).where(seen)
        now = np.zeros(len(picked), np.int64)
        np.maximum.at(now, owner, log.time[rows])
        return Drawn(
            user=picked,
            now=now + 1,
            histories=kept,
            example=picked,
            owner=owner[target],
            target=log.item[rows][target],
            weight=weight[rows][target],
            hidden_owner=owner,
            hidden=log.item[rows],
        )

    def length(self) -> float:
        kept = np.minimum(self.interactions.histories.counts, self.max_history)
        return float(np.average(kept, weights=self.chance))

    def expected(self, items: int) -> np.ndarray:
        log = self.interactions.histories
        first = 1 / np.maximum(log.counts, 1)[log.request]
        others = np.maximum(self.left_out - first, 0)
        total = np.bincount(log.item, (first + (1 - first) * others) * self.chance[log.request], items)
        return total / total.sum()


@dataclass(frozen=True, slots=True)
class Together:
    """Two kinds of examples, of which each is drawn as often; those of the second are numbered on."""

    kinds: tuple[Examples, Examples]

    @property
    def chance(self) -> np.ndarray:
        return np.concatenate([kind.chance / kind.chance.sum() for kind in self.kinds])

    def draw(self, picked: np.ndarray, rng: np.random.Generator) -> Drawn:
        first, second = self.kinds
        of_first = picked < len(first.chance)
        drawn = first.draw(picked[of_first], rng)
        return _joined(drawn, second.draw(picked[~of_first] - len(first.chance), rng), len(first.chance))

    def length(self) -> float:
        return (self.kinds[0].length() + self.kinds[1].length()) / 2

    def expected(self, items: int) -> np.ndarray:
        found: Sequence[np.ndarray] = [kind.expected(items) for kind in self.kinds]
        return (found[0] + found[1]) / 2


def _joined(first: Drawn, second: Drawn, numbers: int) -> Drawn:
    """The examples of both, one after the other; the second's numbers are `numbers` higher."""
    before = len(first.user)
    return Drawn(
        user=np.concatenate((first.user, second.user)),
        now=np.concatenate((first.now, second.now)),
        histories=Histories.concatenate([first.histories, second.histories]),
        example=np.concatenate((first.example, second.example + numbers)),
        owner=np.concatenate((first.owner, second.owner + before)),
        target=np.concatenate((first.target, second.target)),
        weight=np.concatenate((first.weight, second.weight)),
        hidden_owner=np.concatenate((first.hidden_owner, second.hidden_owner + before)),
        hidden=np.concatenate((first.hidden, second.hidden)),
    )
