"""How a log is cut into what a model learns from and what it is asked: the splits by name.

`random`: of each user's distinct items 80 % for training, 10 % for validation and 10 % for the test, in
RecBole's counts; all events of a pair go to one side. `leave-last-out`: the last event of each user with
two. `temporal`: the last tenth of all events, by one moment for all users. `folds`: cross validation.
A log whose files give the split needs none of these. Nothing here invents an order: a split that
the log's timing can't bear is refused where the format is known.
"""

from dataclasses import replace

import numpy as np

from recsys.datasets.content import take_tokens
from recsys.datasets.problem import Problem, judge_users
from recsys.errors import DataError
from recsys.interactions import Asked, Interactions, Timing
from recsys.types import ragged_index

SPLITS = ("given", "temporal", "random", "leave-last-out")
TRAIN, VALIDATION, TEST = 0, 1, 2


def possible_splits(timing: Timing, *, given: bool) -> tuple[str, ...]:
    """Those that make sense for a log of this timing, or one whose files give a split."""
    usable = {
        "given": given,
        "temporal": timing is Timing.CLOCK,
        "random": True,
        "leave-last-out": timing is not Timing.NONE,
    }
    return tuple(name for name in SPLITS if usable[name])


def random_split(log: Interactions, *, seed: int) -> Problem:
    """8:1:1 of each user's distinct items. Without repeats what was trained on is not ranked, and neither is
    the validation part at test time."""
    user, side_of = _pairs(log)
    chance = np.random.default_rng(seed).random(len(user))
    order = np.lexsort((chance, user))
    counts = np.bincount(user, minlength=log.users)
    place = np.empty(len(user), np.int64)
    place[order] = ragged_index(np.zeros_like(counts), counts)
    validation, test = part_counts(counts)
    trained = (counts - validation - test)[user]
    side = np.where(place < trained, TRAIN, np.where(place < trained + validation[user], VALIDATION, TEST))
    return _problem(log, side[side_of])


def part_counts(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of `counts` [U] items are for validation, and for the test.

    A tenth each, rounded down, but one where that is none and training keeps one: first of the test
    (RecBole 1.2, `_calcu_split_ids`; Zhao et al. 2021).
    """
    validation, test = counts // 10, counts // 10
    test = np.where((test == 0) & (counts > 1), 1, test)
    validation = np.where((validation == 0) & (counts - test > 1), 1, validation)
    return validation, test


def fold_splits(log: Interactions, *, folds: int, seed: int) -> list[Problem]:
    """Cross validation: `folds` problems, each distinct pair in the test of one. Raises DataError."""
    user, side_of = _pairs(log)
    if not 2 <= folds <= len(user):
        raise DataError(
            f"{folds} folds of {len(user)} user-item pairs can't be made; give --folds from 2 to {len(user)}"
        )
    fold = np.random.default_rng(seed).permutation(len(user)) * folds // len(user)
    sides = (np.where(fold == number, TEST, TRAIN)[side_of] for number in range(folds))
    return [_problem(log, side) for side in sides]


def leave_last_out(log: Interactions) -> Problem:
    """The last event of each user who has two; who has one is trained on only.

    Without repeats the history is not ranked. A target that is in it is then a miss in a log of sequences,
    as published protocols count it; under a clock it is left out.
    """
    histories = log.histories
    last = histories.offsets[1:][histories.counts >= 2].astype(np.int64) - 1
    keep = np.ones(len(log), bool)
    keep[last] = False
    train = log.where(keep)
    user = histories.request[last]
    new_only = not log.repeats and log.timing is Timing.CLOCK
    asked = _new(train, user, histories.item[last]) if new_only else np.ones(len(last), bool)
    user, last = user[asked], last[asked]
    test = judge_users(train, user=user, item=histories.item[last], value=histories.value[last])
    if log.timing is Timing.CLOCK:  # asked at the moment of what came then
        test = replace(test, queries=replace(test.queries, now=histories.time[last]))
    return Problem(train, test)


def temporal_split(log: Interactions, *, moment: int | None = None, share: float = 0.9) -> Problem:
    """Trained on what lies before `moment` (epoch seconds; None = that before which `share` of the events
    lie), asked for the rest.

    All queries are asked at that moment, those of users without a history too. Without repeats what a
    user took before is neither ranked nor a target. Raises DataError if nothing lies before.
    """
    moment = moment_of(log, share=share) if moment is None else moment
    before = log.histories.time < moment
    if not before.any():
        raise DataError(
            f"{share:.0%} of the events have the time {moment} or a later one and none an earlier one: they "
            "have no order that could be split; choose --split random"
        )
    train = log.where(before)
    user, item = log.histories.request[~before], log.histories.item[~before]
    value = log.histories.value[~before]
    new = np.ones(len(user), bool) if log.repeats else _new(train, user, item)
    test = judge_users(train, user=user[new], item=item[new], value=value[new])
    queries = replace(test.queries, now=np.full(len(test), moment, np.int64))
    return Problem(train, replace(test, queries=queries))


def moment_of(log: Interactions, *, share: float = 0.9) -> int:
    """The moment before which `share` of the events lie, or fewer where several have its time."""
    time, place = log.histories.time, int(share * len(log))
    return int(np.partition(time, place)[place])


def core(log: Interactions, k: int) -> Interactions:
    """Only users and items with `k` events among each other, in the same order (Seidman, 1983).

    Raises DataError if there are none.
    """
    histories = log.histories
    user, item = histories.request, histories.item
    keep = np.ones(len(log), bool)
    while True:
        busy = np.bincount(user[keep], minlength=log.users) >= max(k, 1)
        wanted = np.bincount(item[keep], minlength=log.items) >= max(k, 1)
        kept = keep & busy[user] & wanted[item]
        if np.array_equal(kept, keep):
            break
        keep = kept
    if not keep.any():
        raise DataError(f"no users and items have {k} interactions with each other; lower --k-core")
    users, items = np.flatnonzero(busy), np.flatnonzero(wanted)
    row = np.cumsum(wanted) - 1
    left = log.where(keep)
    taken = left.histories.take(users)  # the others have no events left
    return replace(
        left,
        user_ids=log.user_ids[users],
        histories=replace(taken, item=row[taken.item].astype(np.int32)),
        items=len(items),
        item_tokens=take_tokens(log.item_tokens, items),
        user_tokens=take_tokens(log.user_tokens, users),
    )


def _pairs(log: Interactions) -> tuple[np.ndarray, np.ndarray]:
    """The user of each distinct pair, and the pair of each event; int64."""
    width = max(log.items, 1)
    pair, of_event = np.unique(log.histories.request * width + log.histories.item, return_inverse=True)
    return pair // width, of_event


def _new(train: Interactions, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Whether the user of each pair never took its item in `train`, bool [N]."""
    width = max(train.items, 1)
    taken = train.histories.request * width + train.histories.item
    return ~np.isin(user.astype(np.int64) * width + item, taken)


def _problem(log: Interactions, side: np.ndarray) -> Problem:
    """The problem whose events are on these sides, int [M]."""
    train = replace(log.where(side == TRAIN), asked=Asked.MISSING)
    columns = {
        which: {
            name: getattr(log.histories, source)[side == which]
            for name, source in (("user", "request"), ("item", "item"), ("value", "value"))
        }
        for which in (VALIDATION, TEST)
    }
    held = columns[VALIDATION]
    also_masked = None if log.repeats else (held["user"], held["item"])
    test = judge_users(train, **columns[TEST], also_masked=also_masked)
    return Problem(train, test)
