"""The feature views against SQL on the raw log: what an analyst would count is what the models get."""

from collections.abc import Iterator
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from recsys.features.histories import histories_at
from recsys.features.views import ITEM_FEATURES, USER_FEATURES, item_features, user_features
from recsys.interactions import Interactions
from recsys.types import DAY
from tests import world as small

CATEGORY = np.where(np.arange(small.ITEMS) % 17 == 0, -1, np.arange(small.ITEMS) % small.CATEGORIES).astype(
    np.int32
)
LOG = small.interactions(seed=4)
MOMENTS = (
    small.NOW,
    small.NOW + 3 * DAY // 2,
    int(LOG.histories.time[40]),
)  # the last: an event's own second


@pytest.fixture(scope="module")
def log() -> Interactions:
    """Some values are absent, as in real data."""
    value = LOG.histories.value.copy()
    value[::11] = np.nan
    return replace(LOG, histories=replace(LOG.histories, value=value))


@pytest.fixture(scope="module")
def database(log: Interactions) -> Iterator[duckdb.DuckDBPyConnection]:
    events = log.histories
    raw = pa.table(
        {
            "user_code": events.request,
            "item": events.item,
            "time": events.time,
            "quantity": events.quantity.astype(float),
            "value": pa.array(events.value.astype(float), from_pandas=True),  # NaN -> NULL
            "order_id": events.order,
        }
    )
    connection = duckdb.connect(config={"threads": 1})
    connection.register("events_view", raw)
    connection.register("categories", pa.table({"item": np.arange(len(CATEGORY)), "code": CATEGORY}))
    connection.execute("CREATE TABLE events AS SELECT * FROM events_view")
    yield connection
    connection.close()


USER_SQL = """
WITH past AS (
    SELECT events.*, ($now - time) / 86400.0 AS age, code
    FROM events LEFT JOIN categories USING (item) WHERE time < $now
),
tops AS (
    SELECT user_code, code, row_number() OVER (PARTITION BY user_code ORDER BY count(*) DESC, code) AS place
    FROM past WHERE code >= 0 GROUP BY user_code, code
)
SELECT
    past.user_code,
    count(DISTINCT order_id) AS orders,
    count(*) AS lines,
    count(DISTINCT item) AS items,
    count(DISTINCT order_id) FILTER (age <= 7) AS orders_7d,
    count(DISTINCT order_id) FILTER (age <= 30) AS orders_30d,
    count(*) FILTER (age <= 7) AS lines_7d,
    count(*) FILTER (age <= 30) AS lines_30d,
    coalesce(sum(value), 0) AS spend,
    coalesce(sum(value) FILTER (age <= 7), 0) AS spend_7d,
    coalesce(sum(value) FILTER (age <= 30), 0) AS spend_30d,
    min(age) AS days_since_last,
    max(age) AS days_since_first,
    CASE WHEN count(DISTINCT order_id) > 1
         THEN (max(age) - min(age)) / (count(DISTINCT order_id) - 1) END AS days_between_orders,
    count(*) / count(DISTINCT order_id) AS lines_per_order,
    1 - count(DISTINCT item) / count(*) AS repeat_share,
    avg(ln(1 + value / quantity)) AS price_mean,
    stddev_pop(ln(1 + value / quantity)) AS price_std,
    any_value(tops.code) AS top_category
FROM past LEFT JOIN tops ON tops.user_code = past.user_code AND tops.place = 1
GROUP BY past.user_code
"""

ITEM_SQL = """
WITH past AS (SELECT *, ($now - time) / 86400.0 AS age FROM events WHERE time < $now),
newest AS (SELECT item, min(age) AS last FROM past GROUP BY item)
SELECT
    item,
    count(DISTINCT order_id) FILTER (age <= 7) AS orders_7d,
    count(DISTINCT order_id) FILTER (age <= 30) AS orders_30d,
    count(DISTINCT order_id) FILTER (age <= 90) AS orders_90d,
    count(DISTINCT order_id) AS orders,
    count(DISTINCT user_code) AS buyers,
    count(DISTINCT user_code) FILTER (age <= 30) AS buyers_30d,
    max(age) AS days_since_first_sale,
    min(age) AS days_since_last_sale,
    ln(1 + avg(value / quantity) FILTER (age <= last + 30)) AS price,
    ln(1 + avg(value / quantity) FILTER (age <= last + 30)) - ln(1 + avg(value / quantity)) AS price_change,
    avg(ln(1 + quantity)) AS quantity,
    count(DISTINCT floor(age)) FILTER (age <= 30) AS days_on_sale_30d
FROM past JOIN newest USING (item) GROUP BY item
"""


def answers(database: duckdb.DuckDBPyConnection, sql: str, now: int) -> dict[int, dict[str, float]]:
    """Key -> column -> value; NULL is NaN."""
    found = database.execute(sql, {"now": now})
    names = [column[0] for column in found.description]
    return {
        row[0]: {n: np.nan if v is None else float(v) for n, v in zip(names[1:], row[1:], strict=True)}
        for row in found.fetchall()
    }


@pytest.mark.parametrize("now", MOMENTS)
def test_user_features_are_what_sql_counts(log, database, now):
    expected = answers(database, USER_SQL, now)
    users = np.random.default_rng(now).permutation(small.USERS)[:60]
    histories = histories_at(log, users=users, now=np.full(len(users), now))
    table = user_features(histories, now=np.full(len(users), now), category=CATEGORY)
    seen = 0
    for row, user in zip(table, users, strict=True):
        features = dict(zip(USER_FEATURES, row.tolist(), strict=True))
        if user not in expected:
            assert features["orders"] == features["lines"] == features["spend"] == 0
            assert np.isnan(features["days_since_last"])
            continue
        seen += 1
        for name, value in expected[user].items():
            assert features[name] == pytest.approx(value, rel=1e-5, abs=1e-5, nan_ok=True), (user, name)
    assert seen > 20


@pytest.mark.parametrize("now", MOMENTS)
def test_item_features_are_what_sql_counts(log, database, now):
    expected = answers(database, ITEM_SQL, now)
    table = item_features(log, now=now)
    assert len(expected) > 50
    for item, row in enumerate(table):
        features = dict(zip(ITEM_FEATURES, row.tolist(), strict=True))
        if item not in expected:
            assert features["orders"] == features["buyers"] == 0
            assert np.isnan(features["price"])
            continue
        for name, value in expected[item].items():
            assert features[name] == pytest.approx(value, rel=1e-5, abs=1e-5, nan_ok=True), (item, name)
