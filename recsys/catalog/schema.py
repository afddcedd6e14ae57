"""The contract of an item, and what becomes of records that others wrote.

A record that can't be read must not hide other items, nor end whoever reads it: its item is there, and not
available.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recsys.catalog.changelog import Change
from recsys.errors import DataError

_TIMESTAMP = pa.timestamp("us", tz="UTC")
_FIRST, _LAST = -62_135_596_800, 253_402_300_799  # epoch seconds that Python's datetime has

ITEM_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("categories", pa.list_(pa.string())),  # the first is the primary one
        ("tags", pa.list_(pa.string())),
        ("price", pa.float64()),
        ("available", pa.bool_()),  # null = available
        ("min_age", pa.int32()),
        ("countries_allowed", pa.list_(pa.string())),  # null or empty = all
        ("countries_blocked", pa.list_(pa.string())),
        ("published_at", _TIMESTAMP),
        ("expires_at", _TIMESTAMP),
        ("attributes", pa.map_(pa.string(), pa.string())),
    ]
)


def items_of(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Items (columns of ITEM_SCHEMA) as a table; times are texts of ISO 8601 with their zone, or datetimes.
    Raises DataError."""
    columns = {}
    for part in ITEM_SCHEMA:
        values = [record.get(part.name) for record in records]
        try:
            columns[part.name] = _column(values, part.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"items: {part.name!r} is no {part.type}: {error}; correct it") from error
    if unknown := {name for record in records for name in record} - set(ITEM_SCHEMA.names):
        raise DataError(f"items: unknown column {min(unknown)!r}; an item has {', '.join(ITEM_SCHEMA.names)}")
    return pa.table(columns, schema=ITEM_SCHEMA)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    nested = {pa.types.is_map: Mapping, pa.types.is_list: list, pa.types.is_timestamp: str | datetime}
    for is_kind, wanted in nested.items():  # Arrow takes a text for a list, and ends at a map that is none
        if is_kind(kind):
            for value in values:
                if value is not None and not isinstance(value, wanted):
                    raise TypeError(f"{value!r}")
    if pa.types.is_map(kind):
        values = [value if value is None else list(value.items()) for value in values]
    if not pa.types.is_timestamp(kind):
        return pa.array(values, kind)
    texts = [value.isoformat() if isinstance(value, datetime) else value for value in values]
    moments = pa.array(texts, pa.string()).cast(kind)
    seconds = pc.min_max(pc.divide(moments.cast(pa.int64()), 1_000_000)).as_py()
    if seconds["min"] is not None and not (seconds["min"] >= _FIRST and seconds["max"] <= _LAST):
        raise ValueError("a year before 1 or after 9999")
    return moments


def readable(change: Change) -> Change:
    """The change itself, or if its item can't be read, one that says that the item is not available."""
    if change.kind == "delete":
        return change
    try:
        items_of([{**(change.item or {}), "item_id": change.item_id}])
    except DataError as error:
        logging.getLogger(__name__).warning("item %s is not shown: %s", change.item_id, error)
        return replace(change, item={"available": False})
    return change


def readable_changes(changes: Sequence[Change]) -> list[Change]:
    """Each as `readable` has it."""
    try:
        items_of_changes([change for change in changes if change.kind == "upsert"])
        return list(changes)
    except DataError:
        return [readable(change) for change in changes]


def items_of_changes(upserts: Sequence[Change]) -> pa.Table:
    """The items of upserts, ITEM_SCHEMA, in their order. Raises DataError."""
    return items_of([{**(change.item or {}), "item_id": change.item_id} for change in upserts])


def conform_items(table: pa.Table) -> pa.Table:
    """`table` with exactly ITEM_SCHEMA; absent columns are null. Raises DataError for what can't be one."""
    if unknown := [c for c in table.column_names if c not in ITEM_SCHEMA.names]:
        raise DataError(f"items: unknown column {unknown[0]!r}; an item has {', '.join(ITEM_SCHEMA.names)}")
    if "item_id" not in table.column_names:
        raise DataError(
            f"items: no column 'item_id' among {', '.join(table.column_names) or 'none'}; name it"
        )
    columns = []
    for part in ITEM_SCHEMA:
        try:
            absent = part.name not in table.column_names
            columns.append(pa.nulls(len(table), part.type) if absent else table[part.name].cast(part.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"items: column {part.name!r} is no {part.type} ({error}); correct that value"
            ) from error
    return pa.Table.from_arrays(columns, schema=ITEM_SCHEMA)
