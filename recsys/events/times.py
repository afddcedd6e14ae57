"""Times from outside become timestamp[us, UTC].

Text is ISO 8601 (no zone means UTC) or `d/m/Y H:M` / `m/d/Y H:M`, and which of the two is decided by
the whole column: a day above 12 must occur, else the column is refused as ambiguous. Numbers are
epoch seconds, milliseconds, microseconds or nanoseconds, told apart by size (from 1973 on) and never
mixed in a column. A single unreadable value is null and becomes a rejected event; a column in which
nothing can be read is an error.
"""

import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import DataError

_TIMESTAMP = pa.timestamp("us", tz="UTC")
_SLASHED = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})(?: (\d{1,2}):(\d{2})(?::(\d{2}))?)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_YEAR_10000 = 253_402_300_800e6  # microseconds: no calendar goes further
_UNITS = ((1e8, "s", 1_000_000.0), (1e11, "ms", 1_000.0), (1e14, "us", 1.0), (1e17, "ns", 0.001))


def parse_times(column: pa.ChunkedArray, *, where: str) -> pa.ChunkedArray | pa.Array:
    """`column` as timestamp[us, UTC]; null where a value can't be read.

    Raises DataError if no value can be read, or day and month or the unit can't be told.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_timestamp(kind):
        zoned = column if kind.tz else pc.assume_timezone(column, "UTC")
        return zoned.cast(_TIMESTAMP, safe=False)
    if pa.types.is_date(kind):
        return column.cast(pa.timestamp("us")).cast(_TIMESTAMP)
    if pa.types.is_null(kind):
        return column.cast(_TIMESTAMP)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _from_epoch(column, where)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _from_text(column.cast(pa.string()), where)
    raise DataError(f"{where}: type {kind} is no time; give ISO 8601 text or epoch seconds")


def microseconds(text: str) -> int | None:
    """Epoch microseconds of ISO 8601 text; None if it isn't that."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MICROSECOND


def _from_epoch(column: pa.ChunkedArray, where: str) -> pa.Array:
    values = column.cast(pa.float64(), safe=False).to_numpy()  # exact to 2^53: microseconds until 2255
    sizes = np.digitize(np.nan_to_num(values, nan=0.0), [low for low, _, _ in _UNITS])
    units = np.unique(sizes[sizes > 0])
    if len(units) > 1:
        names = " and ".join(_UNITS[u - 1][1] for u in units)
        raise DataError(f"{where}: numbers look like epoch {names} in one column; use one unit")
    if len(units) == 0:
        if len(values) == column.null_count:
            return pa.nulls(len(values), _TIMESTAMP)
        raise DataError(
            f"{where}: {values[~np.isnan(values)][:1]} is no epoch time after 1973; give epoch seconds"
        )
    factor = _UNITS[units[0] - 1][2]
    readable = (sizes > 0) & (values * factor < _YEAR_10000)
    micros = np.where(readable, np.round(np.where(readable, values, 0) * factor), 0).astype(np.int64)
    return pa.array(micros, mask=~readable).cast(_TIMESTAMP)


def _from_text(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    encoded = (
        column.combine_chunks().dictionary_encode()
        if isinstance(column, pa.ChunkedArray)
        else column.dictionary_encode()
    )
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    texts = encoded.dictionary.to_pylist()
    if texts and all(re.fullmatch(r"\s*-?\d+(\.\d*)?\s*", t) for t in texts[:100]):
        return _from_epoch(pc.cast(pc.utf8_trim_whitespace(column), pa.float64()), where)
    slashed = [_SLASHED.fullmatch(text.strip()) for text in texts]
    day, month = _day_and_month([m for m in slashed if m], where)
    micros = [
        _from_slashed(match, day, month) if match else microseconds(text)
        for text, match in zip(texts, slashed, strict=True)
    ]
    if texts and all(m is None for m in micros):
        raise DataError(f"{where}: {texts[0]!r} is no time; give ISO 8601 text or epoch seconds")
    return pa.array(micros, pa.int64()).cast(_TIMESTAMP).take(encoded.indices)


def _day_and_month(matches: list[re.Match[str]], where: str) -> tuple[int, int]:
    """Which group of the match is the day and which the month."""
    if not matches:
        return 1, 2
    first = max(int(m[1]) for m in matches)
    second = max(int(m[2]) for m in matches)
    if (first > 12) == (second > 12):
        problem = "mixes d/m/Y and m/d/Y" if first > 12 else "may be d/m/Y or m/d/Y"
        raise DataError(
            f"{where}: {matches[0][0]!r} {problem}; write the times as ISO 8601 (2011-12-09 12:50)"
        )
    return (1, 2) if first > 12 else (2, 1)


def _from_slashed(match: re.Match[str], day: int, month: int) -> int | None:
    try:
        moment = datetime(
            int(match[3]),
            int(match[month]),
            int(match[day]),
            int(match[4] or 0),
            int(match[5] or 0),
            int(match[6] or 0),
            tzinfo=UTC,
        )
    except ValueError:
        return None
    return (moment - _EPOCH) // _MICROSECOND
