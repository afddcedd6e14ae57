import numpy as np

from recsys.events.codec import decode_events
from recsys.events.interactions import interactions_of


def test_the_log_is_sorted_and_orders_are_baskets():
    def line(user, second, item, **more):
        return {
            "event_id": f"{user}{second}{item}",
            "user_id": user,
            "item_id": item,
            "timestamp": f"2026-01-01T00:00:0{second}.9Z",
        } | more

    events = decode_events(
        [
            line("b", 3, "x", order_id="o1", quantity=2, value=5),
            line("a", 2, "y"),
            line("b", 1, "y", order_id="o1"),
            line("b", 1, "gone"),
            line("a", 2, "x"),
        ]
    )
    rows = np.array([0, 1, 1, -1, 0], np.int32)
    log = interactions_of(events, rows=rows, items=2)
    assert log.user_ids.tolist() == ["a", "b"]
    assert log.histories.offsets.tolist() == [0, 2, 4]
    assert sorted(log.histories.item[:2].tolist()) == [0, 1]  # the same second: by order
    assert log.histories.item[2:].tolist() == [1, 0]
    assert (log.histories.time % 60).tolist() == [2, 2, 1, 3]
    assert log.histories.quantity.tolist() == [1, 1, 1, 2]
    assert np.array_equal(
        log.histories.value, np.array([np.nan, np.nan, np.nan, 5], np.float32), equal_nan=True
    )
    order = log.histories.order
    assert order[2] == order[3]
    assert len(set(order.tolist())) == 3


def test_no_events():
    log = interactions_of(decode_events([]), rows=np.zeros(0, np.int32), items=3)
    assert (len(log), len(log.user_ids), log.histories.offsets.tolist(), log.items) == (0, 0, [0], 3)
