"""The ranker's input: one row for each candidate, made of what the user did with this item, of what
every model says, and of the two feature views.

Decides the columns and their order (`FEATURES`); training and serving call the same function. A
candidate's row depends on its own request only: ranks are among that request's candidates. What is
not known is NaN, never 0.
"""

import numpy as np

from recsys.features.views import ITEM_FEATURES, USER_FEATURES
from recsys.types import DAY, Candidates, Histories, RequestBatch

SCORES = ("two_tower", "ease", "ease_decayed", "basket", "history", "popularity")
PAIR_FEATURES = (
    "pair_orders",  # orders of this user with this item; 0 = never bought
    "pair_recent",  # the same, each halved for every 21 days of age
    "pair_season",  # the same for every 90 days
    "pair_days_since_last",
    "pair_days_since_first",
    "pair_gap",  # mean days between its orders; NaN below two
    "pair_age_over_gap",  # days since the last, over that gap
    "pair_age_over_user_gap",  # days since the last, over the user's mean gap between orders
    "pair_share_of_orders",  # orders with the item over all orders since its first
    "pair_orders_since",  # orders of the user after the last one with this item
    "pair_quantity",  # mean log(1 + quantity)
    "category_lines",  # lines of the user in the item's category
    "category_share",  # the same over all lines
    "price_to_habit",  # (log price - the user's mean) / (the user's deviation + 0.2)
)
FEATURES = (
    *PAIR_FEATURES,
    *SCORES,
    *(f"{name}_rank" for name in SCORES),
    *(f"user_{name}" for name in USER_FEATURES),
    *(f"item_{name}" for name in ITEM_FEATURES),
)
RECENT_DAYS, SEASON_DAYS = 21.0, 90.0  # half-lives


def cross_features(
    batch: RequestBatch, candidates: Candidates, *, item_features: np.ndarray, category: np.ndarray
) -> np.ndarray:
    """`FEATURES` of N candidates, float32 [N, F].

    Reads `batch.histories`, `batch.now`, `batch.user_features` [B, len(USER_FEATURES)] and
    `candidates.scores`, in which retrieval has filled each of `SCORES` for every candidate (a column
    that is not there is NaN). `item_features` float32 [V, len(ITEM_FEATURES)] and `category` int32
    [V]; an item beyond V is NaN.
    """
    request, item = candidates.request, candidates.item
    table = np.empty((len(item), len(FEATURES)), np.float32)
    pairs, scores = len(PAIR_FEATURES), len(SCORES)
    users_at = pairs + 2 * scores
    items_at = users_at + len(USER_FEATURES)
    inside = item < len(item_features)
    table[:, users_at:items_at] = batch.user_features[request]
    table[:, items_at:] = item_features[np.where(inside, item, 0)] if len(item_features) else np.nan
    table[~inside, items_at:] = np.nan
    for position, name in enumerate(SCORES):
        column = candidates.scores.get(name)
        if column is None:
            table[:, [pairs + position, pairs + scores + position]] = np.nan
            continue
        table[:, pairs + position] = column
        table[:, pairs + scores + position] = rank_within(candidates.offsets, column)
    user_gap = batch.user_features[request, USER_FEATURES.index("days_between_orders")]
    table[:, : pairs - 3] = _pair_features(batch.histories, batch.now, request, item, user_gap)
    lines = batch.user_features[request, USER_FEATURES.index("lines")]
    with np.errstate(invalid="ignore", divide="ignore"):
        in_category = _category_lines(batch.histories, request, item, category)
        table[:, pairs - 3] = in_category
        table[:, pairs - 2] = in_category / lines
        mean = batch.user_features[request, USER_FEATURES.index("price_mean")]
        deviation = batch.user_features[request, USER_FEATURES.index("price_std")]
        price = table[:, items_at + ITEM_FEATURES.index("price")]
        table[:, pairs - 1] = (price - mean) / (deviation + 0.2)
    return table


def rank_within(offsets: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Rank of each score among its request's (`offsets` [B + 1]): 0 = best; equal scores share the
    best rank of theirs; NaN has none. float32 [N]."""
    request = np.repeat(np.arange(len(offsets) - 1, dtype=np.uint64), np.diff(offsets))
    missing = np.isnan(score)
    bits = (np.where(missing, -np.inf, score).astype(np.float32) + np.float32(0)).view(
        np.uint32
    )  # -0.0 -> 0.0
    ascending = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))  # order of floats as integers
    key = (request << np.uint64(32)) | (~ascending).astype(np.uint64)
    order = np.argsort(key)
    key = key[order]
    fresh = np.ones(len(key), bool)
    fresh[1:] = key[1:] != key[:-1]
    first = np.maximum.accumulate(np.where(fresh, np.arange(len(key)), 0))
    rank = np.empty(len(key), np.float32)
    rank[order] = first - offsets[request[order].astype(np.int64)]
    rank[missing] = np.nan
    return rank


def _pair_features(
    histories: Histories, now: np.ndarray, request: np.ndarray, item: np.ndarray, user_gap: np.ndarray
) -> np.ndarray:
    """The columns before `category_lines`, float32 [N, len(PAIR_FEATURES) - 3]."""
    columns = np.full((len(item), len(PAIR_FEATURES) - 3), np.nan, np.float32)
    columns[:, :3] = 0
    if not len(histories.item):
        return columns
    width = max(int(item.max(initial=0)), int(histories.item.max(initial=0))) + 1
    owner = histories.request
    age = ((now[owner] - histories.time) / DAY).astype(np.float64)
    new_order = np.ones(len(owner), bool)
    new_order[1:] = (owner[1:] != owner[:-1]) | (histories.order[1:] != histories.order[:-1])
    sequence = np.cumsum(new_order)  # number of each event's order, over the whole batch
    total_orders = np.full(len(histories), 0)
    np.maximum.at(total_orders, owner, sequence)

    key = owner * width + histories.item
    by_pair = np.argsort(key, kind="stable")  # time order stays within a pair
    key, age_of, number = key[by_pair], age[by_pair], sequence[by_pair]
    start = np.ones(len(key), bool)
    start[1:] = key[1:] != key[:-1]
    counted = start.copy()
    counted[1:] |= number[1:] != number[:-1]
    pair = np.cumsum(start) - 1
    pairs = int(start.sum())
    first = np.flatnonzero(start)
    last = np.concatenate((first[1:], [len(key)])).astype(np.int64) - 1

    def total(weights: np.ndarray) -> np.ndarray:
        return np.bincount(pair, weights, pairs)

    orders = total(counted)
    user_of_pair = owner[by_pair][first]
    with np.errstate(invalid="ignore", divide="ignore"):
        since_last, since_first = age_of[last], age_of[first]
        gap = np.where(orders > 1, (since_first - since_last) / (orders - 1), np.nan)
        known = np.stack(
            (
                orders,
                total(counted * np.exp2(-age_of / RECENT_DAYS)),
                total(counted * np.exp2(-age_of / SEASON_DAYS)),
                since_last,
                since_first,
                gap,
                since_last / np.maximum(gap, 1),
                since_last,  # divided by the user's gap below
                orders / (total_orders[user_of_pair] - number[first] + 1),
                total_orders[user_of_pair] - number[last],
                total(np.log1p(histories.quantity[by_pair])) / np.bincount(pair, minlength=pairs),
            ),
            axis=1,
        ).astype(np.float32)
    wanted = request * width + item
    found = np.searchsorted(key[first], wanted)
    hit = found < pairs
    hit[hit] = key[first][found[hit]] == wanted[hit]
    columns[hit] = known[found[hit]]
    columns[:, 7] /= np.maximum(user_gap, 1)
    return columns


def _category_lines(
    histories: Histories, request: np.ndarray, item: np.ndarray, category: np.ndarray
) -> np.ndarray:
    """Lines of the request's user in each candidate's category; float [N], NaN = the item has none."""
    width = int(category.max(initial=-1)) + 2  # the last one collects what has no category
    padded = np.append(category, -1)
    code = padded[np.minimum(item, len(category))]
    owned = padded[np.minimum(histories.item, len(category))]
    # one cell for each (request, category): bounded by the batch, never by the catalog's items
    lines = np.bincount(histories.request * width + owned % width, minlength=len(histories) * width)
    return np.where(code >= 0, lines[request * width + code % width], np.nan)
