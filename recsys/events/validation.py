"""One set of pure validators, for one HTTP event and for a million-row batch alike.

A row has at most one reason: the first of `REASONS` that holds. `now` is the time at which the event
was appended to the bus (or the file ingested), never the wall clock of whoever replays it, so that a
replay decides alike. An absent event id is no reason: `fill_event_ids` gives the row the hash of its
content and of its occurrence, which is the same however the rows were split over tasks before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.events.schema import (
    CONTEXT,
    EVENT_SCHEMA,
    EVENT_TYPES,
    IDS,
    hashed_ids,
    occurrences,
)

REASONS = (
    "missing_user",
    "missing_item",
    "oversized",
    "control_characters",
    "unknown_type",
    "bad_timestamp",
    "future_timestamp",
    "value_not_finite",
    "quantity_not_positive",
    "value_not_positive",
    "position_below_1",
)

# Reasons beside those that validation finds; all of them stand in the table of rejected events.
MALFORMED = "malformed"  # no event could be read from the record or line
DUPLICATE = "duplicate"  # an event of this user and id was stored within the horizon
LOST = "lost"  # the bus dropped it before it was ingested, which somebody accepted
ERASED = "erased"  # of a user who was erased; nothing but its place on the bus is kept

_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class ValidationSettings:
    future_tolerance: int = 300  # seconds that an event's clock may run ahead of `now`
    max_id_bytes: int = 256
    max_text_bytes: int = 2048  # of a field of the context
    max_attributes_bytes: int = 16_384  # of all names and values together, and one more for each


DEFAULT_SETTINGS = ValidationSettings()


def reasons(
    events: pa.Table, *, now: int | np.ndarray, settings: ValidationSettings = DEFAULT_SETTINGS
) -> pa.Array:
    """Why each event is rejected, string [N]; null = valid.

    `events` has EVENT_SCHEMA; `now` is epoch seconds, one for all or int64 [N].
    """
    user, item, kind = events["user_id"], events["item_id"], events["event_type"]
    timestamp = events["timestamp"].cast(pa.int64())
    latest = (np.asarray(now, np.int64) + settings.future_tolerance) * _MICROSECONDS
    value, quantity = events["value"], events["quantity"]
    position = pc.struct_field(events["context"], "position")
    ids = [events[name] for name in (*IDS, "event_type", "currency")]
    texts = [pc.struct_field(events["context"], f.name) for f in CONTEXT if pa.types.is_string(f.type)]
    holds = {
        "missing_user": _blank(user),
        "missing_item": _blank(item),
        "oversized": _any(ids, lambda c: pc.greater(pc.binary_length(c), settings.max_id_bytes))
        | _any(texts, lambda c: pc.greater(pc.binary_length(c), settings.max_text_bytes))
        | (_attribute_bytes(events["attributes"]) > settings.max_attributes_bytes),
        "control_characters": _any([*ids, *texts], lambda c: pc.match_substring_regex(c, r"\p{Cc}")),
        "unknown_type": _true(pc.invert(pc.is_in(kind, value_set=pa.array(EVENT_TYPES)))),
        "bad_timestamp": ~_true(pc.greater(timestamp, 0)),
        "future_timestamp": _true(pc.greater(timestamp, pa.array(latest) if latest.ndim else int(latest))),
        "value_not_finite": _true(pc.invert(pc.is_finite(value))),
        "quantity_not_positive": _true(pc.less_equal(quantity, 0)),
        "value_not_positive": _true(pc.and_(pc.equal(kind, "purchase"), pc.less_equal(value, 0.0))),
        "position_below_1": _true(pc.less(position, 1)),
    }
    code = np.full(len(events), -1, np.int32)
    for number in reversed(range(len(REASONS))):  # so that the first reason is written last
        code[holds[REASONS[number]]] = number
    return pa.DictionaryArray.from_arrays(pa.array(code, mask=code < 0), pa.array(REASONS)).cast(pa.string())


def validate(
    events: pa.Table, *, now: int | np.ndarray, settings: ValidationSettings = DEFAULT_SETTINGS
) -> tuple[pa.Table, pa.Table]:
    """(valid events with EVENT_SCHEMA, rejected events with their `reason`), both in order."""
    return split(events, reasons(events, now=now, settings=settings))


def split(events: pa.Table, reason: pa.Array | pa.ChunkedArray) -> tuple[pa.Table, pa.Table]:
    """The events without a reason, and those with theirs in one column more, `reason`."""
    valid = reason.is_null()
    return events.filter(valid), events.append_column("reason", reason).filter(pc.invert(valid))


def fill_event_ids(events: pa.Table) -> pa.Table:
    """`events` with every event id given: absent ones are a hash of content and occurrence.

    The occurrence counts equal rows of this table, so give it the whole source: rows that are equal
    are interchangeable, hence any order of them yields the same set of ids.
    """
    absent = _blank(events["event_id"])
    if not absent.any():
        return events
    content = _content(events.filter(pa.array(absent)))
    number = pa.array(occurrences(content)).cast(pa.string())
    ids = hashed_ids(pc.binary_join_element_wise(content, number, "\x1f").to_pylist())
    filled = pc.replace_with_mask(events["event_id"].combine_chunks(), pa.array(absent), ids)
    return events.set_column(0, EVENT_SCHEMA.field("event_id"), filled)


def _content(events: pa.Table) -> pa.Array:
    """All that an event says but its id, as one text, string [N]."""
    columns = [events[f.name] for f in EVENT_SCHEMA if f.name not in ("event_id", "context", "attributes")]
    columns += [pc.struct_field(events["context"], f.name) for f in CONTEXT]
    texts = [(c.cast(pa.int64()) if pa.types.is_timestamp(c.type) else c).cast(pa.string()) for c in columns]
    if events["attributes"].null_count < len(events):
        texts.append(pa.array([str(sorted(a or [])) for a in events["attributes"].to_pylist()], pa.string()))
    joined = pc.binary_join_element_wise(*texts, "\x1f", null_handling="replace", null_replacement="\x00")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _true(column: pa.ChunkedArray) -> np.ndarray:
    """A nullable condition as bool [N]; null is False."""
    return pc.fill_null(column, False).to_numpy().astype(bool)


def _blank(column: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True).to_numpy().astype(bool)


def _any(
    columns: Sequence[pa.ChunkedArray], condition: Callable[[pa.ChunkedArray], pa.ChunkedArray]
) -> np.ndarray:
    return np.logical_or.reduce([_true(condition(column)) for column in columns])


def _attribute_bytes(column: pa.ChunkedArray) -> np.ndarray:
    """Bytes of all names and values of each event, and one more for each pair, int64 [N]."""
    if column.null_count == len(column):
        return np.zeros(len(column), np.int64)
    pairs = column.combine_chunks()
    pairs = pa.concat_arrays(pairs.chunks) if isinstance(pairs, pa.ChunkedArray) else pairs
    sizes = [pc.fill_null(pc.binary_length(part), 0).to_numpy() for part in (pairs.keys, pairs.items)]
    until = np.concatenate([[0], np.cumsum(sizes[0].astype(np.int64) + sizes[1] + 1)])
    offsets = pairs.offsets.to_numpy()
    return until[offsets[1:]] - until[offsets[:-1]]
