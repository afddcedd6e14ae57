"""What an evaluation asks: a training log, and queries whose answers are known.

Decides what a split may look like whatever it came from: a model sees `train` and the queries'
histories; the targets are for the judge alone. Slices for choosing anything are cut from `train`.
"""

from dataclasses import dataclass, replace

import numpy as np

from recsys.interactions import Interactions, Queries, Timing
from recsys.types import Histories, offsets_of, ragged_index


@dataclass(frozen=True, slots=True)
class Judged:
    """B queries, what each wanted, and what is not ranked for it. Ragged columns by their offsets."""

    queries: Queries
    target_offsets: np.ndarray  # int32 [B + 1]
    target: np.ndarray  # int32 [R] item rows, distinct within a query
    value: np.ndarray  # float32 [R] the value (rating) of each target; NaN = not given
    masked_offsets: np.ndarray  # int32 [B + 1]
    masked: np.ndarray  # int32 [Z] item rows that the ranking leaves out, such as those of training

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def target_counts(self) -> np.ndarray:
        return np.diff(self.target_offsets)

    def take(self, rows: np.ndarray) -> "Judged":
        targets, masks = self.target_counts[rows], np.diff(self.masked_offsets)[rows]
        wanted = ragged_index(self.target_offsets[rows], targets)
        hidden = ragged_index(self.masked_offsets[rows], masks)
        return Judged(
            self.queries.take(rows),
            offsets_of(targets),
            self.target[wanted],
            self.value[wanted],
            offsets_of(masks),
            self.masked[hidden],
        )


@dataclass(frozen=True, slots=True)
class Problem:
    train: Interactions
    test: Judged
    metrics: tuple[str, ...] = ("recall", "ndcg")  # what the format is usually judged by
    at: tuple[int, ...] = (20,)


def judge_users(
    train: Interactions,
    *,
    user: np.ndarray,
    item: np.ndarray,
    value: np.ndarray | None = None,
    also_masked: tuple[np.ndarray, np.ndarray] | None = None,
) -> Judged:
    """Users of `train`, each with their targets: pairs `user`, `item` [N]; who has none is no query.

    A query knows the user's whole training history; what is in it is not ranked where `train` has no
    repeats, nor are the pairs of `also_masked` (a validation split). A pair given twice is one target, with
    its last value. Asked one second after the user's newest event; by the clock, and without one, after
    everybody's.
    """
    value = np.full(len(user), np.nan, np.float32) if value is None else value
    log = train.histories
    key = user.astype(np.int64) * train.items + item
    order = np.argsort(key, kind="stable")
    last = np.append(np.diff(key[order]) != 0, True)[: len(order)]
    rows = order[last]
    asking, counts = np.unique(user[rows], return_counts=True)
    histories = log.take(asking)
    now = moment_after(histories)
    if train.timing is Timing.CLOCK and len(train):
        now[histories.counts == 0] = log.time.max() + 1
    hidden = [asking.astype(np.int64)[:0] * train.items]
    if not train.repeats:
        hidden.append(asking[histories.request].astype(np.int64) * train.items + histories.item)
    if also_masked is not None:
        among = np.isin(also_masked[0], asking)
        hidden.append(also_masked[0][among].astype(np.int64) * train.items + also_masked[1][among])
    pairs = _distinct(np.concatenate(hidden))
    place = np.searchsorted(asking, pairs // max(train.items, 1))
    return Judged(
        Queries(asking.astype(np.int64), histories, now),
        offsets_of(counts),
        item[rows].astype(np.int32),
        value[rows].astype(np.float32),
        offsets_of(np.bincount(place, minlength=len(asking))),
        (pairs % max(train.items, 1)).astype(np.int32),
    )


def _distinct(keys: np.ndarray) -> np.ndarray:
    """`np.unique` of int64 keys; by sorting, since they are nearly sorted and hashing is slower."""
    ordered = np.sort(keys, kind="stable")
    return ordered[np.append(True, np.diff(ordered) != 0)[: len(ordered)]]


def moment_after(histories: Histories) -> np.ndarray:
    """One second after each history's newest event, int64 [B]; 0 for an empty one."""
    now = np.zeros(len(histories), np.int64)
    some = histories.counts > 0
    now[some] = histories.time[histories.offsets[1:][some] - 1] + 1
    return now


def hold_out(train: Interactions, *, users: int, seed: int, newest: bool) -> tuple[Interactions, Judged]:
    """A validation slice cut from `train`: one event of each of at most `users` users who have two.

    The `newest` one, or a random one. What is left to train on, and the queries. Of a random one the rest of
    the history is not ranked, also where repeats are: what came later would stand before it.
    """
    rng = np.random.default_rng(seed)
    log = train.histories
    eligible = np.flatnonzero(log.counts >= 2)
    chosen = np.sort(rng.permutation(eligible)[:users])
    last = log.offsets[chosen + 1].astype(np.int64) - 1
    row = last if newest else last - (rng.random(len(chosen)) * log.counts[chosen]).astype(np.int64)
    rest, judged = without_rows(train if newest else replace(train, repeats=False), row)
    return replace(rest, repeats=train.repeats), judged


def without_rows(train: Interactions, row: np.ndarray) -> tuple[Interactions, Judged]:
    """`train` less its events `row` int [N], ascending, and the questions that ask for these."""
    log, keep = train.histories, np.ones(len(train), bool)
    keep[row] = False
    rest = train.where(keep)
    return rest, judge_users(rest, user=log.request[row], item=log.item[row], value=log.value[row])


def hold_out_orders(train: Interactions, *, users: int, seed: int) -> tuple[Interactions, Judged]:
    """A validation slice: the whole newest order of each of at most `users` users who have two. By the clock
    what was taken before is not asked for without repeats; a user whose newest order has nothing else is no
    query.

    One line of an order would be betrayed by the others.
    """
    log = train.histories
    some = log.counts > 0
    last = np.zeros(train.users, np.int64)
    last[some] = log.order[log.offsets[1:][some] - 1]
    newest = log.order == last[log.request]
    eligible = np.flatnonzero(np.bincount(log.request[newest], minlength=train.users) < log.counts)
    chosen = np.sort(np.random.default_rng(seed).permutation(eligible)[:users])
    row = np.flatnonzero(newest & np.isin(log.request, chosen))
    keep = np.ones(len(log.item), bool)
    keep[row] = False
    rest = train.where(keep)
    if train.timing is Timing.CLOCK and not train.repeats:
        taken = rest.histories.request * train.items + rest.histories.item
        row = row[~np.isin(log.request[row] * train.items + log.item[row], taken)]
    return rest, judge_users(rest, user=log.request[row], item=log.item[row], value=log.value[row])


def hold_out_sessions(train: Interactions, *, questions: int) -> tuple[Interactions, Judged]:
    """A validation slice of whole histories, the last ones of two events and more, at most a tenth of all and
    as many as ask at most `questions`: each event but the first is asked for, of a stranger who took what
    came before. Nothing is masked.

    Files of sessions have the oldest first as a rule (diginetica's: the nearer the end, the more its items
    are those of the test part); where they have not, the last are as good as any.
    """
    log = train.histories
    eligible = np.flatnonzero(log.counts >= 2)[::-1]
    asked = np.cumsum(log.counts[eligible] - 1)
    most = min(int((log.counts > 0).sum()) // 10, int(np.searchsorted(asked, questions, side="right")))
    chosen = eligible[:most][::-1]
    held = log.take(chosen)
    place = np.arange(len(held.item)) - np.repeat(held.offsets[:-1].astype(np.int64), held.counts)
    asked = np.flatnonzero(place > 0)
    before = ragged_index(asked - place[asked], place[asked])
    prefixes = Histories(offsets_of(place[asked]), *(getattr(held, c)[before] for c in Histories.COLUMNS))
    judged = Judged(
        Queries(np.full(len(asked), -1, np.int64), prefixes, held.time[asked]),
        np.arange(len(asked) + 1, dtype=np.int32),
        held.item[asked],
        held.value[asked],
        np.zeros(len(asked) + 1, np.int32),
        np.zeros(0, np.int32),
    )
    return train.where(~np.isin(log.request, chosen)), judged
