"""The Event: its Arrow schema, the event types, and how a foreign column becomes one of ours.

Every table of events in recsys has exactly `EVENT_SCHEMA`. A table from outside may lack optional
columns, have wider types or carry `context.page`-like flat columns; `conform` settles that once, at
the border. Ids are text: integral floats lose their `.0`, NaN is null. It does not judge rows:
that is `validation`.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import DataError
from recsys.events.times import parse_times
from recsys.hashing import stable_hashes

EVENT_TYPES = ("view", "click", "add_to_cart", "purchase", "skip", "impression", "rating")

TIMESTAMP = pa.timestamp("us", tz="UTC")

CONTEXT = pa.struct(
    [
        ("device", pa.string()),
        ("session_id", pa.string()),
        ("page", pa.string()),
        ("position", pa.int32()),
        ("slate_id", pa.string()),
        ("country", pa.string()),
    ]
)

EVENT_SCHEMA = pa.schema(
    [
        ("event_id", pa.string()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("event_type", pa.string()),
        ("timestamp", TIMESTAMP),
        ("value", pa.float64()),
        ("currency", pa.string()),
        ("quantity", pa.int32()),
        ("order_id", pa.string()),
        ("context", CONTEXT),
        ("attributes", pa.map_(pa.string(), pa.string())),
    ]
)

# What the store keeps beside an event: where it stood on the bus (null: it came from a file) and when
# the bus, or the ingestion of the file, took it.
PROVENANCE = (
    pa.field("partition", pa.int32()),
    pa.field("offset", pa.int64()),
    pa.field("appended_at", TIMESTAMP),
)
STORED_SCHEMA = pa.schema([*EVENT_SCHEMA, *PROVENANCE])
REJECTED_SCHEMA = STORED_SCHEMA.append(pa.field("reason", pa.string()))

IDS = ("event_id", "user_id", "item_id", "order_id")


def conform(table: pa.Table, *, where: str = "events") -> pa.Table:
    """`table` with exactly `EVENT_SCHEMA`; absent columns are null, unreadable times are null.

    Raises DataError for an unknown column and for a value that its column can't hold.
    """
    context = {f"context.{child.name}" for child in CONTEXT}
    unknown = [c for c in table.column_names if c not in EVENT_SCHEMA.names and c not in context]
    if unknown:
        raise DataError(
            f"{where}: unknown column {unknown[0]!r}; an event has {', '.join(EVENT_SCHEMA.names)}: "
            "rename it, or put it into attributes"
        )
    columns = [_column(table, field, where) for field in EVENT_SCHEMA]
    return pa.Table.from_arrays(columns, schema=EVENT_SCHEMA)


def _column(table: pa.Table, field: pa.Field, where: str) -> pa.ChunkedArray | pa.Array:
    try:
        if field.name == "context":
            return _context(table)
        if field.name not in table.column_names:
            return pa.nulls(len(table), field.type)
        column = table[field.name]
        if field.name in IDS:
            return ids_from(column)
        if field.name == "timestamp":
            return parse_times(column, where=f"{where}, column timestamp")
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{where}: column {field.name!r} ({error}) can't be read as {field.type}; correct that value"
        ) from error


def _context(table: pa.Table) -> pa.Array:
    """The struct from a `context` column or from `context.x` columns; null where all is absent."""
    nested = table["context"].combine_chunks() if "context" in table.column_names else None
    if isinstance(nested, pa.ChunkedArray):
        nested = pa.concat_arrays(nested.chunks) if nested.num_chunks else None
    if nested is not None and nested.type == CONTEXT:
        return nested
    names = set()
    if nested is not None and pa.types.is_struct(nested.type):
        names = {nested.type.field(i).name for i in range(nested.type.num_fields)}
        if unknown := sorted(names - {child.name for child in CONTEXT}):
            raise DataError(
                f"unknown field context.{unknown[0]}; context has {', '.join(f.name for f in CONTEXT)}"
            )
    children = []
    for child in CONTEXT:
        flat = f"context.{child.name}"
        if child.name in names:
            column = pc.struct_field(nested, child.name)
        elif flat in table.column_names:
            column = table[flat].combine_chunks()
        else:
            column = pa.nulls(len(table), child.type)
        children.append(column.cast(child.type))
    empty = np.ones(len(table), bool)
    for column in children:
        empty &= column.is_null().to_numpy(zero_copy_only=False)
    return pa.StructArray.from_arrays(children, fields=list(CONTEXT), mask=pa.array(empty))


def ids_from(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """An id column as text: 17850.0 becomes "17850", NaN and null become null."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        if pc.all(pc.equal(column, pc.floor(column))).as_py() in (True, None):
            column = column.cast(pa.int64())
    return column.cast(pa.string())


def hashed_ids(texts: Sequence[str]) -> pa.Array:
    """An event id for each text that is unique in its source: 16 hex digits of its stable hash."""
    digits = stable_hashes(texts, salt="event_id").astype(">u8").tobytes().hex().encode()
    offsets = np.arange(0, len(digits) + 1, 16, dtype=np.int32)
    return pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(digits))


def occurrences(keys: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """How often each key occurred before in the column, int64 [N]: 0 for the first."""
    if isinstance(keys, pa.ChunkedArray):
        keys = keys.combine_chunks()
    codes = keys.dictionary_encode(null_encoding="encode").indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    first = np.concatenate(([True], ordered[1:] != ordered[:-1])) if len(codes) else np.zeros(0, bool)
    starts = np.maximum.accumulate(np.where(first, np.arange(len(codes)), 0))
    counts = np.empty(len(codes), np.int64)
    counts[order] = np.arange(len(codes)) - starts
    return counts
