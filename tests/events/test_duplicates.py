import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.events.duplicates import SeenEvents, identities

HORIZON = 100


def slow_new(hashes, times, last, horizon=HORIZON):
    """The reference: one event after the other, and when each identity was stored last."""
    stored = []
    for identity, time in zip(hashes, times, strict=True):
        new = identity not in last or time - last[identity] > horizon
        if new:
            last[identity] = time
        stored.append(new)
    return stored


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 60)), max_size=60), st.data())
def test_it_decides_as_one_event_after_the_other(events, data):
    hashes = np.array([identity for identity, _ in events], np.uint64)
    times = np.cumsum([step for _, step in events]).astype(np.int64)
    expected = slow_new(hashes.tolist(), times.tolist(), {})
    seen, found, at = SeenEvents(horizon_ms=HORIZON), [], 0
    while at < len(events):  # however it is cut into batches
        size = data.draw(st.integers(1, 20))
        found += seen.new(hashes[at : at + size], times[at : at + size]).tolist()
        at += size
    assert found == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.integers(0, 40))
def test_made_anew_from_what_was_stored_it_decides_alike(identities_, cut):
    """A restart: the table gives back what was stored, in one piece and in any order."""
    hashes = np.array(identities_, np.uint64)
    times = np.arange(len(hashes), dtype=np.int64) * 7
    expected = slow_new(hashes.tolist(), times.tolist(), {})
    before = np.flatnonzero(expected[:cut])[::-1]
    seen = SeenEvents(horizon_ms=HORIZON)
    seen.note(hashes[before], times[before])
    assert seen.new(hashes[cut:], times[cut:]).tolist() == expected[cut:]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 60)), max_size=60), st.data())
def test_a_few_that_are_far_ahead_make_nothing_forgotten(events, data):
    """In a topic whose times are the producers', some clock is wrong."""
    hashes = [*range(100, 110), *(identity for identity, _ in events)]
    times = [*range(10), *np.cumsum([step for _, step in events]).tolist()]
    for number in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(10, len(hashes)))
        hashes.insert(place, 1000 + number)
        times.insert(place, data.draw(st.integers(10**4, 10**12)))
    expected = slow_new(hashes, times, {})
    seen, found, at = SeenEvents(horizon_ms=HORIZON), [], 0
    while at < len(hashes):
        to = at + data.draw(st.integers(1, 20))
        found += seen.new(np.array(hashes[at:to], np.uint64), np.array(times[at:to], np.int64)).tolist()
        at = to
    assert found == expected


def test_memory_is_what_the_horizon_holds():
    seen = SeenEvents(horizon_ms=1000)
    for second in range(200):
        hashes = np.arange(second * 500, second * 500 + 500, dtype=np.uint64)
        times = np.full(500, second * 100)
        times[::100] += 10**9  # some clocks are wrong
        assert seen.new(hashes, times).all()
    assert 5_000 <= len(seen) < 20_000  # ten batches of 500 are within the horizon


def test_nobody_can_displace_the_event_of_another_user():
    events = pa.table({"user_id": ["a", "b", "a", None], "event_id": ["1", "1", "1", "1"]})
    first, other, again, nobody = identities(events).tolist()
    assert first == again
    assert len({first, other, nobody}) == 3


@pytest.mark.parametrize("size", [0, 1])
def test_nothing_is_nothing(size):
    seen = SeenEvents(horizon_ms=HORIZON)
    assert seen.new(np.zeros(size, np.uint64), np.zeros(size, np.int64)).tolist() == [True] * size
