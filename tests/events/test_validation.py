"""The fast validators against a slow reference that reads one event after the other."""

import math
import unicodedata
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.events.schema import EVENT_SCHEMA, EVENT_TYPES, conform
from recsys.events.validation import REASONS, fill_event_ids, reasons, validate

NOW = 1_700_000_000
IDS = ("event_id", "user_id", "item_id", "order_id")


def slow_reason(event: dict, now: int) -> str | None:
    def blank(text):
        return text is None or text.strip() == ""

    ids = [event[c] for c in (*IDS, "event_type", "currency") if event[c] is not None]
    context = event["context"] or {}
    texts = [context[c] for c in ("device", "session_id", "page", "slate_id", "country") if context.get(c)]
    pairs = event["attributes"] or []
    time = event["timestamp"]
    position = context.get("position")
    value, quantity = event["value"], event["quantity"]
    checks = {
        "missing_user": blank(event["user_id"]),
        "missing_item": blank(event["item_id"]),
        "oversized": any(len(i.encode()) > 256 for i in ids)
        or any(len(t.encode()) > 2048 for t in texts)
        or sum(len(k.encode()) + len(v.encode()) + 1 for k, v in pairs) > 16_384,
        "control_characters": any(unicodedata.category(c) == "Cc" for i in [*ids, *texts] for c in i),
        "unknown_type": event["event_type"] not in EVENT_TYPES,
        "bad_timestamp": time is None or time <= datetime.fromtimestamp(0, UTC),
        "future_timestamp": time is not None and time.timestamp() > now + 300,
        "value_not_finite": value is not None and not math.isfinite(value),
        "quantity_not_positive": quantity is not None and quantity <= 0,
        "value_not_positive": event["event_type"] == "purchase" and value is not None and value <= 0,
        "position_below_1": position is not None and position < 1,
    }
    assert tuple(checks) == REASONS
    return next((name for name, holds in checks.items() if holds), None)


ids = st.none() | st.sampled_from(
    ["", " ", "u1", "é" * 128, "é" * 129, "a\x00b", "a\x85b", "\u200b", "\u3000"]
)
events_strategy = st.lists(
    st.fixed_dictionaries(
        {
            "event_id": ids,
            "user_id": ids | st.text(max_size=3),
            "item_id": ids,
            "event_type": st.none() | st.sampled_from([*EVENT_TYPES, "purchases", ""]),
            "timestamp": st.none()
            | st.sampled_from([-1, 0, 1, NOW, NOW + 300, NOW + 301]).map(
                lambda s: datetime.fromtimestamp(s, UTC)
            ),
            "value": st.none() | st.sampled_from([0.0, -1.0, 2.5, math.nan, math.inf, -math.inf]),
            "currency": st.none() | st.sampled_from(["EUR", "x" * 257, "\n"]),
            "quantity": st.none() | st.sampled_from([-1, 0, 1]),
            "order_id": ids,
            "context": st.none()
            | st.fixed_dictionaries(
                {
                    "position": st.none() | st.sampled_from([0, 1, -5]),
                    "page": st.none() | st.sampled_from(["", "p" * 2048, "é" * 1025, "a\tb"]),
                }
            ),
            "attributes": st.none()
            | st.lists(st.tuples(st.text(max_size=2), st.sampled_from(["", "é", "v" * 8190])), max_size=3),
        }
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(events_strategy)
def test_batch_validators_equal_the_slow_reference(events):
    table = pa.Table.from_pylist(events, schema=EVENT_SCHEMA)
    expected = [slow_reason(event, NOW) for event in table.to_pylist()]
    assert reasons(table, now=NOW).to_pylist() == expected
    assert reasons(table, now=np.full(len(events), NOW)).to_pylist() == expected
    one_by_one = [reasons(table.slice(i, 1), now=NOW).to_pylist()[0] for i in range(len(events))]
    assert one_by_one == expected
    valid, rejected = validate(table, now=NOW)
    assert len(valid) + len(rejected) == len(table)
    assert rejected["reason"].to_pylist() == [r for r in expected if r]


def event(**fields) -> dict:
    return {
        "user_id": "u",
        "item_id": "i",
        "event_type": "click",
        "timestamp": datetime.fromtimestamp(NOW, UTC),
    } | fields


def test_now_is_each_events_append_time():
    table = pa.Table.from_pylist([event(), event()], schema=EVENT_SCHEMA)
    assert reasons(table, now=np.array([NOW - 301, NOW])).to_pylist() == ["future_timestamp", None]


def test_absent_ids_depend_on_content_and_occurrence_only():
    rows = [event(), event(item_id="j"), event(), event(attributes=[("a", "b")]), event(event_id="mine")]
    filled = fill_event_ids(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA))["event_id"].to_pylist()
    assert len(set(filled)) == 5
    assert filled[4] == "mine"
    shuffled = fill_event_ids(pa.Table.from_pylist(rows[::-1], schema=EVENT_SCHEMA))["event_id"].to_pylist()
    assert set(shuffled) == set(filled)


def test_conform_makes_ids_text_and_takes_flat_context():
    table = pa.table(
        {
            "user_id": [17850.0, math.nan],
            "item_id": [1, 2],
            "timestamp": [1.7e9, 1.7e9],
            "context.position": [3, None],
        }
    )
    got = conform(table)
    assert got.schema.equals(EVENT_SCHEMA)
    assert got["user_id"].to_pylist() == ["17850", None]
    assert got["context"].to_pylist()[0]["position"] == 3
    assert got["context"].to_pylist()[1] is None
    assert got["timestamp"].to_pylist()[0].timestamp() == 1.7e9


def test_conform_names_the_column_it_does_not_know():
    with pytest.raises(DataError, match="unknown column 'price'"):
        conform(pa.table({"price": [1]}))
    with pytest.raises(DataError, match="'quantity'"):
        conform(pa.table({"quantity": ["two"]}))
