"""Feature views: what is said about a user, and about an item, at a moment.

Pure functions of the log before `now`. Training and serving both call these, so no
second definition exists. A value that can't be known (no event yet, one order
only) is NaN, never 0. Days are 86,400 s back from `now`; a window holds events with
now - days <= time < now.
"""

import numpy as np

from recsys.interactions import Interactions
from recsys.types import DAY, Histories

USER_FEATURES = (
    "orders",  # distinct orders ever
    "lines",  # events ever
    "items",  # distinct items ever
    "orders_7d",
    "orders_30d",
    "lines_7d",
    "lines_30d",
    "spend",  # sum of value, all time; likewise below
    "spend_7d",
    "spend_30d",
    "days_since_last",
    "days_since_first",
    "days_between_orders",  # mean gap of distinct orders; NaN below two
    "lines_per_order",
    "last_order_lines",
    "repeat_share",  # share of lines that bought an item already bought in an earlier line
    "price_mean",  # mean of log(1 + unit price) over lines
    "price_std",
    "top_category",  # code of the category with most lines; ties to the lower code; NaN = none
    "top_category_share",
)
ITEM_FEATURES = (
    "orders_7d",  # distinct orders with the item; likewise below
    "orders_30d",
    "orders_90d",
    "orders",
    "buyers",  # distinct users ever
    "buyers_30d",
    "trend_7d",  # log of the daily rate of 7 days over that of 30 days, one order added to each
    "trend_30d",  # the same of 30 days over 90 days
    "share_rank",  # position by orders_30d, 0 = most popular, over the number of items
    "price",  # mean unit price of its newest 30 days with a sale, log(1 + x)
    "price_change",  # that, less the log(1 + mean unit price) of all time
    "days_since_first_sale",
    "days_since_last_sale",
    "repeat_rate",  # share of its buyers with two orders or more, one half buyer in five assumed
    "repeat_gap",  # mean days between a buyer's first and last order over (orders - 1), of those
    "quantity",  # mean log(1 + quantity) of a line
    "days_on_sale_30d",  # distinct days with a sale in 30 days
)


def user_features(histories: Histories, *, now: np.ndarray, category: np.ndarray) -> np.ndarray:
    """`USER_FEATURES` of B users, float32 [B, F].

    `now` int64 [B]; every event of `histories` lies before it. `category` int32 [V] is the code of
    each item's category, -1 = none; rows beyond it have none. An empty history has counts of 0 and
    NaN for the rest.
    """
    users, log = len(histories), histories
    owner = log.request
    age = (now[owner] - log.time) / DAY
    value = np.nan_to_num(log.value).astype(np.float64)

    def total(weights: np.ndarray) -> np.ndarray:
        return np.bincount(owner, weights, users)

    first_of_order = _first_of(owner, log.order)
    first_of_item = _first_of(owner, log.item)
    orders, lines = total(first_of_order), total(np.ones(len(owner)))
    with np.errstate(invalid="ignore", divide="ignore"):
        price = np.log1p(value / log.quantity)
        known = np.isfinite(price) & np.isfinite(log.value)
        price = np.where(known, price, 0)
        priced = total(known)
        mean = total(price) / priced
        std = np.sqrt(np.maximum(total(price**2) / priced - mean**2, 0))
        nonempty = histories.counts > 0
        newest, oldest = np.full(users, np.nan), np.full(users, np.nan)
        newest[nonempty] = age[log.offsets[1:][nonempty] - 1]
        oldest[nonempty] = age[log.offsets[:-1][nonempty]]
        last_order = np.zeros(users, np.int64)
        last_order[nonempty] = log.order[log.offsets[1:][nonempty] - 1]
        top, top_share = _top_category(owner, log.item, category, users)
        columns = (
            orders,
            lines,
            total(first_of_item),
            total(first_of_order & (age <= 7)),
            total(first_of_order & (age <= 30)),
            total(age <= 7),
            total(age <= 30),
            total(value),
            total(value * (age <= 7)),
            total(value * (age <= 30)),
            newest,
            oldest,
            np.where(orders > 1, (oldest - newest) / (orders - 1), np.nan),
            lines / orders,
            np.where(nonempty, total(log.order == last_order[owner]), np.nan),
            1 - total(first_of_item) / lines,
            mean,
            std,
            top,
            top_share,
        )
    return np.stack(columns, axis=1).astype(np.float32)


def item_features(interactions: Interactions, *, now: int) -> np.ndarray:
    """`ITEM_FEATURES` of all V items from the events before `now`, float32 [V, F].

    An item without a sale before `now` is NaN everywhere but in its counts, which are 0.
    """
    items, log = interactions.items, interactions.histories
    past = log.time < now
    user, item, order = log.request[past], log.item[past], log.order[past]
    time, quantity, value = log.time[past], log.quantity[past], log.value[past].astype(np.float64)
    age = (now - time) / DAY

    def total(weights: np.ndarray) -> np.ndarray:
        return np.bincount(item, weights, items)

    once_an_order = _first_of(item, order)
    once_a_user = _first_of(item, user)
    orders = {days: total(once_an_order & (age <= days)) for days in (7, 30, 90)}
    all_orders = total(once_an_order)
    first_sale, last_sale = np.full(items, np.nan), np.full(items, np.nan)
    np.fmax.at(first_sale, item, age)
    np.fmin.at(last_sale, item, age)
    repeaters, gap_sum = _repeats(user, item, order, age, items)
    buyers = total(once_a_user)
    # time runs back from `now` in `age`, so an item's newest 30 days are ages to last_sale + 30
    newest = age <= last_sale[item] + 30
    ranked = np.lexsort((np.arange(items), -orders[30]))
    rank = np.empty(items)
    rank[ranked] = np.arange(items)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = np.where(np.isfinite(value) & (quantity > 0), value / quantity, np.nan)
        priced = np.isfinite(unit)
        unit = np.where(priced, unit, 0)
        price_ever = np.log1p(total(unit) / total(priced))
        price = np.log1p(total(unit * newest) / total(priced & newest))
        columns = (
            orders[7],
            orders[30],
            orders[90],
            all_orders,
            buyers,
            total(_first_of(item, np.where(age <= 30, user, -1)) & (age <= 30)),
            np.log((orders[7] + 1) / (orders[30] + 1) * (30 / 7)),
            np.log((orders[30] + 1) / (orders[90] + 1) * (90 / 30)),
            rank / max(items, 1),
            price,
            price - price_ever,
            first_sale,
            last_sale,
            (repeaters + 0.5) / (buyers + 5),
            gap_sum / repeaters,
            total(np.log1p(quantity)) / total(np.ones(len(item))),
            total(_first_of(item, (age // 1).astype(np.int64)) & (age <= 30)),
        )
    table = np.stack(columns, axis=1).astype(np.float32)
    counts = [f.startswith(("orders", "buyers", "days_on_sale")) for f in ITEM_FEATURES]
    table[np.ix_(all_orders == 0, ~np.array(counts))] = np.nan
    return table


def _first_of(group: np.ndarray, value: np.ndarray) -> np.ndarray:
    """True at the first occurrence of each (group, value) pair; bool [M]."""
    order = np.lexsort((value, group))
    fresh = np.ones(len(order), bool)
    fresh[1:] = (group[order[1:]] != group[order[:-1]]) | (value[order[1:]] != value[order[:-1]])
    first = np.zeros(len(order), bool)
    first[order[fresh]] = True
    return first


def _top_category(
    owner: np.ndarray, item: np.ndarray, category: np.ndarray, users: int
) -> tuple[np.ndarray, np.ndarray]:
    """The category with most events of each user, and its share of all events; float64 [B], NaN = none."""
    top, share = np.full(users, np.nan), np.full(users, np.nan)
    known = item < len(category)
    code = np.where(known, category[np.where(known, item, 0)] if len(category) else -1, -1)
    width = int(category.max(initial=0)) + 1
    pairs, counts = np.unique(owner[code >= 0] * width + code[code >= 0], return_counts=True)
    order = np.lexsort((pairs, -counts, pairs // width))
    user = (pairs // width)[order]
    first = np.ones(len(user), bool)
    first[1:] = user[1:] != user[:-1]
    top[user[first]] = (pairs % width)[order][first]
    share[user[first]] = counts[order][first] / np.bincount(owner, minlength=users)[user[first]]
    return top, share


def _repeats(
    user: np.ndarray, item: np.ndarray, order: np.ndarray, age: np.ndarray, items: int
) -> tuple[np.ndarray, np.ndarray]:
    """Buyers with two orders or more of each item, and the sum of their mean gaps in days; float64 [V]."""
    if not len(user):
        return np.zeros(items), np.zeros(items)
    by_pair = np.lexsort((-age, item, user))
    user, item, order, age = user[by_pair], item[by_pair], order[by_pair], age[by_pair]
    start = np.ones(len(user), bool)
    start[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    new_order = start.copy()
    new_order[1:] |= order[1:] != order[:-1]
    pair = np.cumsum(start) - 1
    first = np.flatnonzero(start)
    last = np.concatenate((first[1:], [len(user)])) - 1
    times = np.bincount(pair, new_order, len(first))
    repeated = times > 1
    gap = (age[first] - age[last]) / np.maximum(times - 1, 1)
    who = item[first][repeated]
    return np.bincount(who, minlength=items).astype(float), np.bincount(who, gap[repeated], items)
