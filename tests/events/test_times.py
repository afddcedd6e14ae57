import pyarrow as pa
import pytest

from recsys.errors import DataError
from recsys.events.times import parse_times


def parsed(values, kind=None):
    column = parse_times(pa.chunked_array([pa.array(values, kind)]), where="file, column at")
    return [v and v.isoformat() for v in column.to_pylist()]


def test_iso_with_and_without_zone():
    assert parsed(
        ["2011-12-09T12:50:00Z", "2011-12-09 12:50", "2011-12-09T14:50:00+02:00", None, "nonsense"]
    ) == ["2011-12-09T12:50:00+00:00"] * 3 + [None, None]


@pytest.mark.parametrize("factor", [1, 10**3, 10**6, 10**9])
def test_epoch_units_are_told_apart(factor):
    assert parsed([1_323_435_000 * factor, None]) == ["2011-12-09T12:50:00+00:00", None]
    assert parsed([str(1_323_435_000 * factor)]) == ["2011-12-09T12:50:00+00:00"]


def test_day_and_month_are_decided_by_the_whole_column():
    assert parsed(["9/12/2011 12:50", "13/12/2011 8:26"])[0] == "2011-12-09T12:50:00+00:00"
    assert parsed(["12/9/2011 12:50", "12/13/2011 8:26"])[0] == "2011-12-09T12:50:00+00:00"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1/2/2011 8:26"], "may be d/m/Y or m/d/Y"),
        (["13/2/2011 8:26", "2/13/2011 8:26"], "mixes"),
        ([1_323_435_000, 1_323_435_000_000], "s and ms"),
        ([20111209], "no epoch time"),
        (["soon"], "is no time"),
    ],
)
def test_what_can_not_be_told_is_refused(values, message):
    with pytest.raises(DataError, match=message):
        parsed(values)
