"""The point-in-time cut: strictly before, the newest kept, the future without influence."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.histories import histories_at
from recsys.interactions import Interactions
from recsys.types import Histories, offsets_of


def random_log(seed: int) -> Interactions:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 8, 5)
    events = int(counts.sum())
    time = np.concatenate([np.sort(rng.integers(0, 10, n)) for n in counts])  # many equal times
    histories = Histories(
        offsets_of(counts),
        rng.integers(0, 9, events).astype(np.int32),
        time.astype(np.int64),
        np.ones(events, np.float32),
        np.ones(events, np.float32),
        np.arange(events, dtype=np.int64),
    )
    return Interactions(np.arange(5).astype(object), histories, 9)


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 11)), max_size=8),
    st.integers(1, 6),
)
@settings(deadline=None)
def test_a_cut_is_the_newest_events_strictly_before(seed, asked, limit):
    log = random_log(seed)
    users = np.array([user for user, _ in asked], np.int64)
    now = np.array([moment for _, moment in asked], np.int64)
    cut = histories_at(log, users=users, now=now, max_history=limit)
    assert len(cut) == len(asked)
    for position, (user, moment) in enumerate(asked):
        mine = range(log.histories.offsets[user], log.histories.offsets[user + 1])
        expected = [row for row in mine if log.histories.time[row] < moment][-limit:]
        found = slice(cut.offsets[position], cut.offsets[position + 1])
        assert cut.order[found].tolist() == [log.histories.order[row] for row in expected]
        assert cut.item[found].tolist() == [log.histories.item[row] for row in expected]


def test_a_log_without_events():
    log = Interactions(np.array(["a"], object), Histories.empty(1), 0)
    assert len(histories_at(log, users=np.array([0, 0]), now=np.array([5, 6])).item) == 0
