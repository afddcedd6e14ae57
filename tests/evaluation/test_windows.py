"""Temporal windows: midnights, doubling, and data that can't fill them."""

import numpy as np
import pytest

from recsys.errors import DataError
from recsys.evaluation.windows import ENOUGH_USERS, Windows, choose_windows, held_out_window
from recsys.interactions import Interactions
from recsys.types import DAY, Histories, offsets_of

DAY_0 = 1_300_000_000 // DAY * DAY


def log(times_of_users: list[list[float]]) -> Interactions:
    """Users with events at these days after DAY_0."""
    days = [day for times in times_of_users for day in sorted(times)]
    count = len(days)
    return Interactions(
        np.array([f"u{number:04d}" for number in range(len(times_of_users))], object),
        Histories(
            offsets_of(np.array([len(times) for times in times_of_users], int)),
            np.zeros(count, np.int32),
            (DAY_0 + np.array(days) * DAY).astype(np.int64),
            np.ones(count, np.float32),
            np.ones(count, np.float32),
            np.arange(count),
        ),
        1,
    )


def every(days: float, *, until: float, users: int = ENOUGH_USERS) -> Interactions:
    return log([list(np.arange(0, until, days) + 0.3) for _ in range(users)])


def test_windows_begin_at_midnight_and_tile_the_end_of_the_data():
    windows = choose_windows(every(3, until=100), days=7, slices=4)
    last = 99.3  # the last event
    assert windows.end == DAY_0 + round(last * DAY) + 1  # and it is inside
    assert windows.held_out == DAY_0 + 92 * DAY  # the midnight before 99.3 - 7
    assert windows.starts == tuple(DAY_0 + (92 - 7 * back) * DAY for back in (4, 3, 2, 1, 0))
    assert windows.days == 7
    assert [windows.end_of(i) for i in range(5)] == [*windows.starts[1:], windows.end]


def test_an_event_at_midnight_sharp():
    # The last event is at day 14.0 sharp, so the held-out window of 7 days starts at day 7, not at day 6.
    windows = choose_windows(log([[-9.5, 0.5, 8, 14.0]] * ENOUGH_USERS), days=7, slices=1)
    assert windows.held_out == DAY_0 + 7 * DAY
    assert windows.starts == (DAY_0, DAY_0 + 7 * DAY)


def test_windows_are_doubled_until_enough_users_come_back():
    # Everybody comes every 20 days, so that no window of 5 or 10 days has all of them.
    sparse = log([list(np.arange(user % 20, 400, 20) + 0.3) for user in range(ENOUGH_USERS)])
    assert choose_windows(sparse, days=5, slices=2).days == 20
    dense = log([list(np.arange(user % 20, 400, 20) + 0.3) for user in range(4 * ENOUGH_USERS)])
    assert choose_windows(dense, days=5, slices=2).days == 5


def test_every_window_must_have_enough():
    # The users pause for three weeks: a window of 7 days would be empty, none of 14 is.
    times = [*np.arange(0, 60, 3), *np.arange(80, 100, 3)]
    windows = choose_windows(log([list(times)] * ENOUGH_USERS), days=7, slices=3)
    assert windows.days == 14
    for window, start in enumerate(windows.starts):
        assert any(start <= DAY_0 + t * DAY < windows.end_of(window) for t in times)


def test_too_few_users_is_said_with_what_was_found():
    with pytest.raises(DataError, match=r"found 7 d: 49; 14 d: 49.*training\.window_days"):
        choose_windows(every(3, until=100, users=ENOUGH_USERS - 1), days=7, slices=3)


def test_too_short_a_span_is_said():
    with pytest.raises(DataError, match="a span too short"):
        choose_windows(every(1, until=20), days=7, slices=3)


def test_no_event_at_all():
    with pytest.raises(DataError, match="ingest events first"):
        choose_windows(log([[], []]), days=7, slices=3)


def test_users_who_only_begin_in_a_window_do_not_count():
    newcomers = log([[0.3]] + [[day + 0.5] for day in range(100) for _ in range(9)])
    with pytest.raises(DataError, match="7 d: 0"):
        choose_windows(newcomers, days=7, slices=3)


def test_one_window_is_its_own_end():
    windows = Windows((5 * DAY,), 9 * DAY)
    assert (windows.held_out, windows.days, windows.end_of(0)) == (5 * DAY, 4, 9 * DAY)


def test_a_single_stage_has_the_held_out_window_alone():
    data = every(3, until=100)
    windows = held_out_window(data, days=7)
    assert windows.starts == choose_windows(data, days=7, slices=4).starts[-1:]
    assert windows.end == choose_windows(data, days=7, slices=4).end


@pytest.mark.parametrize(
    "data",
    [every(3, until=100, users=ENOUGH_USERS - 1), every(1, until=20)],
    ids=["too few users", "too short a past"],
)
def test_of_little_data_the_last_tenth_is_held_out(data):
    windows = held_out_window(data, days=12)
    assert np.mean(data.histories.time < windows.held_out) == pytest.approx(0.9, abs=0.02)
    assert windows.end == data.histories.time.max() + 1


@pytest.mark.parametrize("times", [[[3.0]], [[3.0, 3.0], [3.0]]])
def test_events_of_one_moment_all_teach_and_none_judges(times):
    windows = held_out_window(log(times), days=7)
    assert windows.held_out == windows.end == DAY_0 + 3 * DAY + 1


def test_a_single_stage_needs_an_event():
    with pytest.raises(DataError, match="ingest events first"):
        held_out_window(log([[], []]), days=7)
