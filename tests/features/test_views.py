"""The feature views against a slow reading of their definitions, and their degenerate cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.histories import histories_at
from recsys.features.views import ITEM_FEATURES, USER_FEATURES, item_features, user_features
from recsys.interactions import Interactions
from recsys.types import DAY, Histories, offsets_of

NOW, ITEMS = 1_300_000_000, 7
CATEGORY = np.array([0, 0, 1, 1, 2, -1, -1], np.int32)


def random_log(seed: int, users: int = 6) -> Interactions:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 12, users)
    columns = {name: [] for name in Histories.COLUMNS}
    for user, lines in enumerate(counts):
        orders = np.sort(rng.integers(0, 4, lines))
        age = np.array([100, 25, 6, 1])[orders] + rng.random(4)[orders]
        columns["item"].append(rng.integers(0, ITEMS - 1, lines))  # the last item is never sold
        columns["time"].append(NOW - (age * DAY).astype(np.int64))
        columns["quantity"].append(rng.integers(1, 5, lines))
        columns["value"].append(np.where(rng.random(lines) < 0.1, np.nan, rng.random(lines) * 20))
        columns["order"].append(user * 10 + orders)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Interactions(
        np.arange(users).astype(object),
        Histories(
            offsets_of(counts),
            joined["item"].astype(np.int32),
            joined["time"].astype(np.int64),
            joined["quantity"].astype(np.float32),
            joined["value"].astype(np.float32),
            joined["order"].astype(np.int64),
        ),
        ITEMS,
    )


def slow_user(log: Histories, user: int) -> dict[str, float]:
    rows = range(log.offsets[user], log.offsets[user + 1])
    age = {row: (NOW - log.time[row]) / DAY for row in rows}
    value = {row: 0.0 if np.isnan(log.value[row]) else float(log.value[row]) for row in rows}
    orders = {log.order[row] for row in rows}
    found = {
        "orders": len(orders),
        "lines": len(rows),
        "items": len({log.item[row] for row in rows}),
        "orders_7d": len({log.order[row] for row in rows if age[row] <= 7}),
        "orders_30d": len({log.order[row] for row in rows if age[row] <= 30}),
        "lines_7d": sum(age[row] <= 7 for row in rows),
        "lines_30d": sum(age[row] <= 30 for row in rows),
        "spend": sum(value.values()),
        "spend_30d": sum(value[row] for row in rows if age[row] <= 30),
    }
    if len(rows):
        found["days_since_last"] = min(age.values())
        found["days_since_first"] = max(age.values())
        found["lines_per_order"] = len(rows) / len(orders)
        found["last_order_lines"] = sum(log.order[row] == log.order[rows[-1]] for row in rows)
        found["repeat_share"] = 1 - found["items"] / len(rows)
        codes = [CATEGORY[log.item[row]] for row in rows if CATEGORY[log.item[row]] >= 0]
        best = min(set(codes), key=lambda c: (-codes.count(c), c), default=np.nan)
        found["top_category"] = best
        found["top_category_share"] = codes.count(best) / len(rows) if codes else np.nan
    return found


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_user_features_by_definition(seed):
    log = random_log(seed).histories
    table = user_features(log, now=np.full(len(log), NOW), category=CATEGORY)
    assert table.shape == (len(log), len(USER_FEATURES))
    for user in range(len(log)):
        for name, value in slow_user(log, user).items():
            assert table[user, USER_FEATURES.index(name)] == pytest.approx(value, rel=1e-5, nan_ok=True), name


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_item_features_by_definition(seed):
    log = random_log(seed)
    table = item_features(log, now=NOW)
    events = log.histories
    column = {name: table[:, position] for position, name in enumerate(ITEM_FEATURES)}
    for item in range(ITEMS):
        rows = np.flatnonzero(events.item == item)
        age = (NOW - events.time[rows]) / DAY
        assert column["orders"][item] == len(set(events.order[rows]))
        assert column["orders_30d"][item] == len(set(events.order[rows[age <= 30]]))
        assert column["buyers"][item] == len(set(events.request[rows]))
        assert column["buyers_30d"][item] == len(set(events.request[rows[age <= 30]]))
        if not len(rows):
            assert np.isnan(column["price"][item])
            assert np.isnan(column["repeat_rate"][item])
            continue
        assert column["days_since_first_sale"][item] == pytest.approx(age.max(), rel=1e-5)
        assert column["days_since_last_sale"][item] == pytest.approx(age.min(), rel=1e-5)
        repeaters = [
            u
            for u in set(events.request[rows])
            if len(set(events.order[rows][events.request[rows] == u])) > 1
        ]
        buyers = len(set(events.request[rows]))
        assert column["repeat_rate"][item] == pytest.approx((len(repeaters) + 0.5) / (buyers + 5), rel=1e-5)


def test_nothing_from_now_on_changes_a_feature():
    log = random_log(5)
    cut = NOW - 10 * DAY
    altered = log.histories.time >= cut
    assert altered.any()
    rng = np.random.default_rng(0)
    columns = {name: getattr(log.histories, name).copy() for name in Histories.COLUMNS}
    columns["item"][altered] = rng.integers(0, ITEMS, altered.sum())
    columns["value"][altered] *= 99
    columns["quantity"][altered] += 7
    columns["order"][altered] += 12345
    other = Interactions(log.user_ids, Histories(log.histories.offsets, *columns.values()), ITEMS)
    users, now = np.arange(6), np.full(6, cut)
    for make in (
        lambda i: item_features(i, now=cut),
        lambda i: user_features(histories_at(i, users=users, now=now), now=now, category=CATEGORY),
    ):
        np.testing.assert_array_equal(make(log), make(other))


def test_a_user_does_not_depend_on_batch_mates():
    log = random_log(8).histories
    table = user_features(log, now=np.full(6, NOW), category=CATEGORY)
    order = np.array([4, 1, 3])
    np.testing.assert_array_equal(
        user_features(log.take(order), now=np.full(3, NOW), category=CATEGORY), table[order]
    )


def test_empty_history_and_empty_log():
    row = user_features(Histories.empty(1), now=np.array([NOW]), category=CATEGORY)[0]
    counts = {"orders", "lines", "items", "spend"}
    for name, value in zip(USER_FEATURES, row, strict=True):
        counted = name.removesuffix("_7d").removesuffix("_30d") in counts
        assert value == 0 if counted else np.isnan(value), name
    assert user_features(Histories.empty(0), now=np.zeros(0, int), category=CATEGORY).shape[0] == 0
    nothing = item_features(Interactions(np.array(["a"], object), Histories.empty(1), 3), now=NOW)
    assert nothing.shape == (3, len(ITEM_FEATURES))
    assert nothing[0, 0] == 0
    assert np.isnan(nothing[0, ITEM_FEATURES.index("price")])
