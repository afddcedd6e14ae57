"""What a record on the bus may be, and the events in it.

We write Avro in single-object encoding: `C3 01`, the fingerprint of the writer's schema, the event.
Others may write JSON, or Avro in a schema registry's framing (`00`, the schema's id). Ours is decoded
a whole batch at a time, as one Avro container; each frame is checked again afterwards, and a batch
with a broken record is decoded record by record. Fields match by name: unknown ones are dropped,
absent ones are null, so older and newer producers are both read. A broken record is an event of
nothing but its body and the error, for the table of rejected events.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import fastavro
import httpx
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from fastavro.schema import fingerprint, to_parsing_canonical_form

from recsys.errors import DataError, SettingsError, UnavailableError
from recsys.events.codec import decode_json
from recsys.events.schema import CONTEXT, EVENT_SCHEMA

FRAME = b"\xc3\x01"  # of single-object encoding; 8 bytes of fingerprint follow
_FRAME_BYTES = 10
_SYNC = bytes(16)
_MAX_KEPT = 1_000_000  # bytes of a broken body that are kept


@cache
def event_schema() -> dict[str, Any]:
    """The newest schema in `schemas/`, as parsed JSON: what we write."""
    newest = max((Path(__file__).parent / "schemas").glob("event.*.avsc"), key=_version)
    return dict(json.loads(newest.read_text()))


def frame_of(schema: Any) -> bytes:
    """The ten bytes before an event that was written with `schema`."""
    digest = fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")
    return FRAME + bytes.fromhex(digest)


def encode(events: pa.Table, *, schema: Mapping[str, Any] | None = None) -> list[bytes]:
    """A framed Avro body for each event."""
    schema = schema or event_schema()
    parsed, frame = fastavro.parse_schema(dict(schema)), frame_of(schema)
    bodies = []
    index = events.schema.get_field_index("timestamp")
    events = events.set_column(index, "timestamp", events["timestamp"].cast(pa.int64()))
    for row in events.to_pylist():
        if row["attributes"] is not None:
            row["attributes"] = [{"key": key, "value": value} for key, value in row["attributes"]]
        body = io.BytesIO()
        body.write(frame)
        fastavro.schemaless_writer(body, parsed, row)
        bodies.append(body.getvalue())
    return bodies


class Decoder:
    """Decodes bodies; knows the schemas of this version, and those of `schemas`."""

    def __init__(self, schemas: str | None = None) -> None:
        """`schemas`: a folder of `*.avsc`, known by fingerprint and, where the file is named by a
        number, by that id; or the url of a schema registry. Raises SettingsError for a bad folder."""
        ours = [json.loads(p.read_text()) for p in (Path(__file__).parent / "schemas").glob("*.avsc")]
        self._frames = {frame_of(schema): fastavro.parse_schema(schema) for schema in ours}
        self._ids: dict[int, Any] = {}
        self._registry = schemas if schemas and "://" in schemas else None
        if schemas and not self._registry:
            self._read_folder(Path(schemas))
        self._ours = frame_of(event_schema())
        header = io.BytesIO()
        fastavro.writer(header, fastavro.parse_schema(_framed(event_schema())), [], sync_marker=_SYNC)
        self._header = header.getvalue()

    def __call__(self, bodies: Sequence[bytes]) -> tuple[pa.Table, list[str | None]]:
        """(events with EVENT_SCHEMA [N], for each what is wrong with it or None), in order.

        Raises UnavailableError if the schema registry does not answer.
        """
        if not bodies:
            return EVENT_SCHEMA.empty_table(), []
        if all(body.startswith(self._ours) for body in bodies):
            events = self._at_once(bodies)
            if events is not None:
                return events, [None] * len(bodies)
        rows = [self._row(body) for body in bodies]
        events, errors = decode_json(rows)
        if any(errors):
            kept = [
                row if error is None else {"attributes": _broken(body, error)}
                for row, body, error in zip(rows, bodies, errors, strict=True)
            ]
            events = decode_json(kept)[0]
        return events, errors

    def _at_once(self, bodies: Sequence[bytes]) -> pa.Table | None:
        """All events by one parse in Rust; None if any record is broken."""
        joined = b"".join(bodies)
        container = b"".join([self._header, _long(len(bodies)), _long(len(joined)), joined, _SYNC])
        try:
            read = pl.read_avro(io.BytesIO(container)).to_arrow()
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
            return None
        # A record cut short would swallow the next one's beginning: then a frame is not where it was.
        frames = read["frame"].cast(pa.binary())
        if len(read) != len(bodies) or not pc.all(pc.equal(frames, pa.scalar(self._ours))).as_py():
            return None
        return _to_event_schema(read["event"])

    def _row(self, body: bytes) -> Any:
        """One record as what `decode_json` takes: JSON text, a dict, or the DataError that it is."""
        if body[:2] == FRAME:
            schema = self._frames.get(body[:_FRAME_BYTES])
            if schema is None:
                return DataError(f"no schema has the fingerprint {body[2:10].hex()}: add it to bus.schemas")
            return _record(schema, body[_FRAME_BYTES:])
        if body[:1] == b"\x00" and len(body) > 5:
            number = int.from_bytes(body[1:5], "big")
            schema = self._by_id(number)
            if schema is None:
                return DataError(f"no schema has the id {number}: name its registry in bus.schemas")
            return _record(schema, body[5:])
        return body

    def _by_id(self, number: int) -> Any:
        if number not in self._ids and self._registry:
            url = f"{self._registry.rstrip('/')}/schemas/ids/{number}"
            try:
                answer = httpx.get(url, timeout=5.0)
                if answer.status_code != 404:
                    answer.raise_for_status()
                    self._ids[number] = fastavro.parse_schema(orjson.loads(answer.json()["schema"]))
            except (httpx.HTTPError, ValueError, KeyError) as error:
                raise UnavailableError(f"{url} gives no schema ({error}); correct bus.schemas") from error
        return self._ids.get(number)

    def _read_folder(self, folder: Path) -> None:
        paths = sorted(folder.glob("*.avsc"))
        if not paths:
            raise SettingsError(f"bus.schemas = {str(folder)!r}: no *.avsc there")
        for path in paths:
            try:
                schema = json.loads(path.read_text())
                parsed = fastavro.parse_schema(schema)
                self._frames[frame_of(schema)] = parsed
            except (ValueError, OSError, KeyError, fastavro.schema.SchemaParseException) as error:
                raise SettingsError(f"{path} is no Avro schema ({error})") from error
            if path.stem.isdigit():
                self._ids[int(path.stem)] = parsed


def _broken(body: bytes, error: str) -> dict[str, str]:
    return {"body": base64.b64encode(body[:_MAX_KEPT]).decode(), "error": error[:200]}


def _record(schema: Any, body: bytes) -> dict[str, Any] | DataError:
    """The known fields of one Avro record, or why it can't be read."""
    stream = io.BytesIO(body)
    try:
        record = fastavro.schemaless_reader(stream, schema, None)
    except Exception as error:  # whatever a hostile body makes of a parser
        return DataError(f"not the Avro of its schema ({type(error).__name__}: {error})")
    if stream.tell() != len(body):
        return DataError(f"{len(body) - stream.tell()} bytes are left behind the Avro record")
    if not isinstance(record, dict):
        return DataError(f"its schema is no record but {type(record).__name__}")
    row = {name: value for name, value in record.items() if name in EVENT_SCHEMA.names}
    if isinstance(context := row.get("context"), dict):
        row["context"] = {n: v for n, v in context.items() if CONTEXT.get_field_index(n) >= 0}
    if isinstance(pairs := row.get("attributes"), list):
        try:
            row["attributes"] = {pair["key"]: pair["value"] for pair in pairs}
        except (TypeError, KeyError):
            return DataError("attributes are neither a map nor pairs of key and value")
    return row


def _framed(schema: Mapping[str, Any]) -> dict[str, Any]:
    frame = {"type": "fixed", "name": "Frame", "size": _FRAME_BYTES}
    fields = [{"name": "frame", "type": frame}, {"name": "event", "type": dict(schema)}]
    return {"type": "record", "name": "Framed", "fields": fields}


def _to_event_schema(read: pa.ChunkedArray) -> pa.Table:
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
            pairs = column.cast(pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())])))
            flat = pairs.values
            columns.append(
                pa.MapArray.from_arrays(
                    pairs.offsets, flat.field("key"), flat.field("value"), mask=pairs.is_null()
                )
            )
        else:
            columns.append(column.cast(field.type))
    return pa.Table.from_arrays(columns, schema=EVENT_SCHEMA)


def _long(number: int) -> bytes:
    """An Avro long: zigzag, seven bits a byte; of a number >= 0."""
    number <<= 1
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _version(path: Path) -> int:
    return int(path.name.split(".")[1])
