"""JSON <-> events, for HTTP and the bus.

Strict where JSON is lax: an unknown field and a value of another type are errors that name the field.
An absent field is null, and whether that is acceptable is `validation`'s decision. A timestamp is
ISO 8601 text; no zone means UTC. Attributes are text to text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from recsys.errors import DataError
from recsys.events.schema import CONTEXT, EVENT_SCHEMA
from recsys.events.times import microseconds

_INT32 = 2**31


def decode_events(bodies: Sequence[bytes | str | Mapping[str, Any]]) -> pa.Table:
    """Events with EVENT_SCHEMA from one JSON object (or its dict) each.

    Raises DataError naming the number of the event, the field, its value and what it must be.
    """
    rows = [_row(_object(body, number), number) for number, body in enumerate(bodies)]
    try:
        return pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)
    except (UnicodeEncodeError, OverflowError) as error:  # of a dict only: JSON text can't hold either
        raise DataError(
            f"an event holds what no column can ({error}); send valid Unicode and numbers"
        ) from error


def encode_events(events: pa.Table) -> list[bytes]:
    """One JSON object for each event; null fields are left out."""
    return [orjson.dumps(_sparse(row), option=orjson.OPT_NAIVE_UTC) for row in events.to_pylist()]


def _object(body: bytes | str | Mapping[str, Any], number: int) -> Mapping[str, Any]:
    if isinstance(body, bytes | str):
        try:
            body = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise DataError(
                f"event {number}: not JSON ({error}); send one JSON object for each event"
            ) from error
    if not isinstance(body, Mapping):
        raise DataError(f"event {number}: {body!r:.60} is not a JSON object; send one object for each event")
    return body


def _row(event: Mapping[str, Any], number: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in event.items():
        index = EVENT_SCHEMA.get_field_index(name)
        if index < 0:
            raise DataError(
                f"event {number}: unknown field {name!r}; put what is not one of "
                f"{', '.join(EVENT_SCHEMA.names)} into attributes"
            )
        if value is None:
            continue
        if name == "context":
            row[name] = _context(value, number)
        elif name == "attributes":
            row[name] = _attributes(value, number)
        else:
            row[name] = _scalar(value, EVENT_SCHEMA.field(index).type, name, number)
    return row


def _context(value: Any, number: int) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(number, "context", value, "an object")
    for name in value:
        if CONTEXT.get_field_index(name) < 0:
            raise DataError(f"event {number}: unknown field 'context.{name}'; put it into attributes")
    return {
        name: _scalar(child, CONTEXT.field(name).type, f"context.{name}", number)
        for name, child in value.items()
        if child is not None
    }


def _attributes(value: Any, number: int) -> list[tuple[str, str]]:
    if not isinstance(value, Mapping):
        raise _wrong(number, "attributes", value, "an object of text to text")
    for name, text in value.items():
        if not isinstance(text, str):
            raise _wrong(number, f"attributes.{name}", text, "text")
    return list(value.items())


def _scalar(value: Any, kind: pa.DataType, name: str, number: int) -> Any:
    if pa.types.is_string(kind):
        if not isinstance(value, str):
            raise _wrong(number, name, value, "text")
        return value
    if pa.types.is_timestamp(kind):
        parsed = microseconds(value) if isinstance(value, str) else None
        if parsed is None:
            raise _wrong(number, name, value, "ISO 8601 text like 2026-11-24T08:00:00Z")
        return parsed
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(number, name, value, "a number")
    if pa.types.is_integer(kind) and (not isinstance(value, int) or not -_INT32 <= value < _INT32):
        raise _wrong(number, name, value, "an integer of 32 bits")
    return value


def _wrong(number: int, name: str, value: Any, must: str) -> DataError:
    return DataError(
        f"event {number}: field {name!r} is {value!r:.60} ({type(value).__name__}); it must be {must}"
    )


def _sparse(row: dict[str, Any]) -> dict[str, Any]:
    sparse = {name: value for name, value in row.items() if value is not None}
    if "context" in sparse:
        sparse["context"] = {name: value for name, value in sparse["context"].items() if value is not None}
    if "attributes" in sparse:
        sparse["attributes"] = dict(sparse["attributes"])
    return sparse
