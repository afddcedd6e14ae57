"""What a record on the bus may be, and the events in it.

We write Avro in single-object encoding: `C3 01`, the fingerprint of the writer's schema, the event.
Others may write JSON, or Avro in a schema registry's framing (`00`, the schema's id). Ours is decoded
a whole batch at a time, as one Avro container; one that fails is taken apart until its broken records
are alone. Fields match by name: unknown ones are dropped, absent ones are null, so older and newer
producers are both read. A broken record is an event of nothing but its body and the error, for the
table of rejected events.
"""

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import fastavro
import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import DataError
from recsys.events.codec import CONTEXT_NAMES, NAMES, decode_json
from recsys.events.schema import EVENT_SCHEMA
from recsys.events.writer_schemas import FRAME, FRAME_BYTES, WriterSchemas, event_schema, frame_of

_SYNC = bytes(16)
_MARK_BYTES = 16
_MAX_KEPT = 1_000_000  # bytes of a broken body that are kept
_YEARS = (-62_135_596_800_000_000, 253_402_300_799_999_999)  # 1 to 9999, in microseconds of the epoch
_NOT_ONE_EVENT = "not exactly one event in the Avro of its schema: cut short, changed or followed by more"
_NULL, _GIVEN = pa.scalar(b"\x00"), pa.scalar(b"\x02")  # which of the union ["null", ...]


def encode(events: pa.Table) -> list[bytes]:
    """A framed Avro body for each event (EVENT_SCHEMA)."""
    frame, bodies = frame_of(event_schema()), list[bytes]()
    for batch in events.combine_chunks().to_batches():
        parts = [part for column in batch.columns for part in _encoded(column)]
        bodies += _joined([pa.repeat(frame, len(batch)), *parts]).to_pylist()
    return bodies


class Decoder:
    """Decodes bodies; knows the schemas of this version, and those of `schemas`."""

    def __init__(self, schemas: str | None = None, *, strict: bool = False) -> None:
        """`schemas`: as in `BusSettings`. `strict`: an unknown field of a JSON object is an error.

        Raises SettingsError for a bad folder of schemas.
        """
        self._strict = strict
        self._schemas = WriterSchemas(schemas)
        self._ours = frame_of(event_schema())
        header = io.BytesIO()
        fastavro.writer(header, fastavro.parse_schema(_marked(event_schema())), [], sync_marker=_SYNC)
        self._header = header.getvalue()

    def __call__(self, bodies: Sequence[bytes]) -> tuple[pa.Table, list[str | None]]:
        """(events with EVENT_SCHEMA [N], for each what is wrong with it or None), in order.

        What becomes of a body does not depend on the others. Raises UnavailableError if the schema
        registry does not answer.
        """
        rows = dict[int, Any]()  # what is decoded one by one, by its place
        ours = [place for place, body in enumerate(bodies) if body.startswith(self._ours)]
        pieces = list(self._pieces(bodies, ours, rows)) if ours else []
        if pieces and len(pieces[0][1]) == len(bodies):
            return pieces[0][1], [None] * len(bodies)
        others = {place: body for place, body in enumerate(bodies) if not body.startswith(self._ours)}
        ids = {number for body in others.values() if (number := _id_of(body)) is not None}
        schemas = self._schemas.by_id(ids)
        rows |= {place: self._row(body, schemas) for place, body in others.items()}
        events, errors = decode_json(list(rows.values()))
        if any(errors):
            kept = [
                row if error is None else {"attributes": _broken(bodies[place], error)}
                for (place, row), error in zip(rows.items(), errors, strict=True)
            ]
            events = decode_json(kept)[0]
        order = np.argsort([*(place for places, _ in pieces for place in places), *rows])
        of_place = dict(zip(rows, errors, strict=True))
        events = pa.concat_tables([*(piece for _, piece in pieces), events]).combine_chunks().take(order)
        return events, [of_place.get(place) for place in range(len(bodies))]

    def _pieces(
        self, bodies: Sequence[bytes], places: list[int], broken: dict[int, Any]
    ) -> Iterator[tuple[list[int], pa.Table]]:
        """Places and their events; those of broken records are put into `broken` with the reason."""
        try:
            yield places, self._at_once([bodies[place] for place in places])
        except DataError as error:
            if len(places) == 1:
                broken[places[0]] = error
                return
            # Another parser says cheaply which it may be; whether it is, is decided by a parse on its own.
            suspect = {p for p in places if isinstance(self._row(bodies[p], {}), DataError)}
            middle = len(places) // 2
            parts = [places[:middle], places[middle:]]
            if suspect:
                parts = [[p for p in places if p not in suspect], *([p] for p in suspect)]
            for part in filter(None, parts):
                yield from self._pieces(bodies, part, broken)

    def _at_once(self, bodies: Sequence[bytes]) -> pa.Table:
        """All events by one parse in Rust. Raises DataError if any record is broken.

        Behind each body stands a mark that no producer knows: a record that ends too early or too late
        does not find it, and there are as many marks as records, so each ends where its body does.
        """
        mark = os.urandom(_MARK_BYTES)
        joined = b"".join([part for body in bodies for part in (body, mark)])
        container = b"".join([self._header, _long(len(bodies)), _long(len(joined)), joined, _SYNC])
        try:
            read = pl.read_avro(io.BytesIO(container))
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            raise DataError(_NOT_ONE_EVENT) from error  # what it tells depends on the mark
        if read["mark"].to_list() != [mark] * len(bodies):
            raise DataError(_NOT_ONE_EVENT)
        return _to_event_schema(read.to_arrow()["event"])

    def _row(self, body: bytes, schemas: Mapping[int, Any]) -> Any:
        """One record as what `decode_json` takes: a dict, the DataError that it is, or what is no JSON."""
        if body[:2] == FRAME:
            return _record(self._schemas.by_frame(body[:FRAME_BYTES]), body[FRAME_BYTES:])
        if (number := _id_of(body)) is not None:
            return _record(schemas[number], body[5:])
        try:
            given = body if self._strict else orjson.loads(body)
        except orjson.JSONDecodeError:
            return body
        return _known(given) if isinstance(given, dict) else body


def _broken(body: bytes, error: str) -> dict[str, str]:
    return {"body": base64.b64encode(body[:_MAX_KEPT]).decode(), "error": error[:200]}


def _record(schema: Any, body: bytes) -> dict[str, Any] | DataError:
    """The known fields of one Avro record, or why it can't be read."""
    if isinstance(schema, DataError):
        return schema
    stream = io.BytesIO(body)
    try:
        record = fastavro.schemaless_reader(stream, schema, None)
    except Exception as error:  # whatever a hostile body makes of a parser
        return DataError(f"not the Avro of its schema ({type(error).__name__})")
    if stream.tell() != len(body):
        return DataError(f"{len(body) - stream.tell()} bytes are left behind the Avro record")
    if not isinstance(record, dict):
        return DataError(f"its schema is no record but {type(record).__name__}")
    if isinstance(pairs := record.get("attributes"), list):
        try:
            record["attributes"] = {pair["key"]: pair["value"] for pair in pairs}
        except (TypeError, KeyError):
            return DataError("attributes are neither a map nor pairs of key and value")
        if len(record["attributes"]) < len(pairs):
            return DataError("attributes name a key twice")
    return _known(record)


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that an event does not have."""
    row = {name: value for name, value in row.items() if name in NAMES}
    if isinstance(context := row.get("context"), dict):
        row["context"] = {name: value for name, value in context.items() if name in CONTEXT_NAMES}
    return row


def _id_of(body: bytes) -> int | None:
    """The schema's id of a schema registry's framing."""
    return int.from_bytes(body[1:5], "big") if body[:1] == b"\x00" and len(body) > 5 else None


def _marked(schema: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {
        "frame": {"type": "fixed", "name": "Frame", "size": FRAME_BYTES},
        "event": dict(schema),
        "mark": {"type": "fixed", "name": "Mark", "size": _MARK_BYTES},
    }
    fields = [{"name": name, "type": kind} for name, kind in kinds.items()]
    return {"type": "record", "name": "Marked", "fields": fields}


def _to_event_schema(read: pa.ChunkedArray) -> pa.Table:
    """Raises DataError for a time that no calendar has, and for an attribute that is named twice."""
    events = read.combine_chunks()
    events = events.chunk(0) if isinstance(events, pa.ChunkedArray) else events
    names = [field.name for field in events.type]
    columns = []
    for field in EVENT_SCHEMA:
        if field.name not in names:
            columns.append(pa.nulls(len(events), field.type))
            continue
        column = pc.struct_field(events, field.name)
        if field.name == "attributes":
            columns.append(_to_map(column))
            continue
        columns.append(column.cast(field.type))
        if field.name == "timestamp":
            least, most = pc.min_max(columns[-1].cast(pa.int64())).values()
            if least.is_valid and not _YEARS[0] <= least.as_py() <= most.as_py() <= _YEARS[1]:
                raise DataError("timestamp lies outside of the years 1 to 9999; it counts microseconds")
    return pa.Table.from_arrays(columns, schema=EVENT_SCHEMA)


def _to_map(column: pa.Array) -> pa.MapArray:
    pairs = column.cast(pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())])))
    keys, rows = pairs.values.field("key"), pc.list_parent_indices(pairs)
    names = keys.dictionary_encode()
    named = np.sort(rows.to_numpy() * len(names.dictionary) + names.indices.to_numpy())
    if (np.diff(named) == 0).any():
        raise DataError("attributes name a key twice")
    return pa.MapArray.from_arrays(pairs.offsets, keys, pairs.values.field("value"), mask=pairs.is_null())


def _encoded(column: pa.Array) -> list[Any]:
    """What, joined row by row with null as nothing, is the Avro of the optional values of a column."""
    kind, given = column.type, column.is_valid()
    if column.null_count == len(column):
        return [_NULL]
    if pa.types.is_struct(kind):
        fields = [part for child in column.flatten() for part in _encoded(child)]
        content = [pc.if_else(given, _joined(fields), None)]
    elif pa.types.is_map(kind):
        keys, values = column.keys, column.items
        pairs = _joined([*_encoded_texts(keys), *_encoded_texts(values)])
        lists = pa.ListArray.from_arrays(column.offsets, pairs)
        count = pc.list_value_length(lists)
        end = pc.if_else(pc.equal(count, 0), b"", b"\x00")  # the count of a block of none ends the list, too
        content = [pc.if_else(given, _joined([_longs(count), pc.binary_join(lists, b""), end]), None)]
    elif pa.types.is_string(kind):
        content = _encoded_texts(column)
    elif pa.types.is_floating(kind):
        content = [column.view(pa.binary(8)).cast(pa.binary())]
    else:
        content = [_longs(column.view(pa.int64()) if pa.types.is_timestamp(kind) else column)]
    return [pc.if_else(given, _GIVEN, _NULL) if column.null_count else _GIVEN, *content]


def _encoded_texts(texts: pa.Array) -> list[pa.Array]:
    return [_longs(pc.binary_length(texts)), texts.view(pa.binary())]


def _joined(parts: Sequence[Any]) -> pa.Array:
    return pc.binary_join_element_wise(*parts, b"", null_handling="replace")


def _longs(numbers: pa.Array) -> pa.Array:
    distinct = numbers.dictionary_encode()  # lengths and positions are few
    encoded = pa.array([_long(number) for number in distinct.dictionary.to_pylist()], pa.binary())
    return encoded.take(distinct.indices)


def _long(number: int) -> bytes:
    """An Avro long: zigzag, seven bits a byte."""
    number = number << 1 ^ number >> 63
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
