"""JSON -> events, for HTTP, files and the topics of others.

Strict where JSON is lax: an unknown field and a value of another type are errors that name the field
(`wire` drops what the bus brings of unknown ones before). An absent field is null, and whether that is
acceptable is `validation`'s decision. A timestamp is ISO 8601 text; no zone means UTC. Attributes are
text to text. Columns are built one after the other, each checked as a whole; only a column that fails
is searched for the events that are wrong.
"""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow as pa

from recsys.errors import DataError
from recsys.events.schema import CONTEXT, EVENT_SCHEMA, TIMESTAMP
from recsys.events.times import microseconds

NAMES = frozenset(EVENT_SCHEMA.names)
CONTEXT_NAMES = frozenset(field.name for field in CONTEXT)
_ATTRIBUTES = EVENT_SCHEMA.field("attributes").type

Build = Callable[[list[Any]], pa.Array]  # may raise ValueError, OverflowError: a value is wrong
Errors = dict[int, str]  # number of the event -> the first thing that is wrong with it


def decode_events(bodies: Sequence[bytes | str | Mapping[str, Any]]) -> pa.Table:
    """Events with EVENT_SCHEMA from one JSON object (or its dict) each.

    Raises DataError naming the number of the event, the field, its value and what it must be.
    """
    events, errors = decode_json(bodies)
    for number, error in enumerate(errors):
        if error is not None:
            raise DataError(f"event {number}: {error}")
    return events


def decode_json(bodies: Sequence[Any]) -> tuple[pa.Table, list[str | None]]:
    """(one event for each body, why it can't be read or None), in order; an unreadable one is blank.

    A body may be a DataError: then that is why.
    """
    errors: Errors = {}
    objects = [_object(body, number, errors) for number, body in enumerate(bodies)]
    _refuse_unknown(objects, NAMES, errors)
    table = _table(objects, errors)
    if errors:
        table = _table([{} if number in errors else event for number, event in enumerate(objects)], {})
    return table, [errors.get(number) for number in range(len(bodies))]


def _object(body: Any, number: int, errors: Errors) -> Mapping[str, Any]:
    if isinstance(body, bytes | str):
        try:
            body = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            body = DataError(f"not JSON ({error}); send one JSON object for each event")
    if isinstance(body, Mapping):
        return body
    errors[number] = (
        str(body)
        if isinstance(body, DataError)
        else f"{reprlib.repr(body)} is not a JSON object; send one object for each event"
    )
    return {}


def _refuse_unknown(
    objects: Sequence[Mapping[str, Any] | None], names: frozenset[str], errors: Errors, parent: str = ""
) -> None:
    if frozenset[str]().union(*(given for given in objects if given)) <= names:
        return
    for number, given in enumerate(objects):
        unknown = next((name for name in given or () if name not in names), None)
        if unknown is not None:
            errors.setdefault(
                number,
                f"unknown field {_short(f'{parent}{unknown}')}; put what is not one of "
                f"{', '.join(EVENT_SCHEMA.names)} into attributes",
            )


def _table(events: Sequence[Mapping[str, Any]], errors: Errors) -> pa.Table:
    columns = [_column(field, [event.get(field.name) for event in events], errors) for field in EVENT_SCHEMA]
    return pa.Table.from_arrays(columns, schema=EVENT_SCHEMA)


def _column(field: pa.Field, values: list[Any], errors: Errors, parent: str = "") -> pa.Array:
    kind, name = field.type, parent + field.name

    def checked(build: Build, must: str, *allowed: type) -> pa.Array:
        return _checked(values, build, must, frozenset(allowed), name, errors)

    if field.name == "context":
        return _context(values, errors)
    if field.name == "attributes":
        return checked(_maps, "an object of text to text", dict)
    if pa.types.is_timestamp(kind):
        return checked(_times, "ISO 8601 text like 2026-11-24T08:00:00Z", str, datetime)
    if pa.types.is_string(kind):
        return checked(lambda given: pa.array(given, kind), "Unicode text", str)
    if pa.types.is_integer(kind):
        return checked(lambda given: pa.array(given, kind), "an integer of 32 bits", int)
    return checked(_floats, "a number", int, float)


def _checked(
    values: list[Any], build: Build, must: str, allowed: frozenset[type], name: str, errors: Errors
) -> pa.Array:
    """The column of `values`, which are of the types `allowed`; null where one is wrong, which `errors`
    then says. True is no number."""
    allowed |= {type(None)}
    if allowed.issuperset(map(type, values)):
        try:
            return build(values)
        except (ValueError, OverflowError):
            pass
    cells = []
    for number, value in enumerate(values):
        try:
            if not isinstance(value, tuple(allowed)) or type(value) is bool:
                raise ValueError
            cells.append(build([value]))
        except (ValueError, OverflowError):
            errors.setdefault(number, _wrong(name, value, must))
            cells.append(build([None]))
    return pa.concat_arrays(cells)


def _context(values: list[Any], errors: Errors) -> pa.Array:
    for number, value in enumerate(values):
        if value is not None and type(value) is not dict:
            errors.setdefault(number, _wrong("context", value, "an object"))
            values[number] = None
    _refuse_unknown(values, CONTEXT_NAMES, errors, "context.")
    children = [
        _column(child, [value.get(child.name) if value else None for value in values], errors, "context.")
        for child in CONTEXT
    ]
    absent = pa.array([value is None for value in values], pa.bool_())
    return pa.StructArray.from_arrays(children, fields=list(CONTEXT), mask=absent)


def _times(values: list[Any]) -> pa.Array:
    return pa.array([None if value is None else _micros(value) for value in values], pa.int64()).cast(
        TIMESTAMP
    )


def _micros(value: str | datetime) -> int:
    if isinstance(value, datetime):  # of Avro
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    parsed = microseconds(value)
    if parsed is None:
        raise ValueError
    return parsed


def _floats(values: list[Any]) -> pa.Array:
    # Arrow refuses integers that a float can't hold exactly.
    return pa.array([None if value is None else float(value) for value in values], pa.float64())


def _maps(values: list[Any]) -> pa.Array:
    if not all(type(part) is str for given in values if given for pair in given.items() for part in pair):
        raise ValueError
    return pa.array([None if value is None else list(value.items()) for value in values], _ATTRIBUTES)


def _wrong(name: str, value: Any, must: str) -> str:
    return f"field {name!r} is {reprlib.repr(value)} ({type(value).__name__}); it must be {must}"


def _short(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:60] + "...")
