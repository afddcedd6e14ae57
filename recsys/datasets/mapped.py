"""One's own files, by a map of columns: `user=customer,item=sku,time=at,type==purchase,value=amount`.

`name=column` takes a column, `name==text` the same text for every row. Events need user, item, time and
type; without `event`, an event's id is the hash of its row and occurrence in the file. Items come from
the same file (the last value that is given for an item wins) or from a catalog file of their own.
A text with several categories or tags separates them by `|`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys.catalog.schema import ITEM_SCHEMA, conform_items
from recsys.datasets.tables import Dataset, read_table
from recsys.errors import DataError
from recsys.events.schema import conform, ids_from
from recsys.events.times import parse_times
from recsys.events.validation import fill_event_ids

_EVENT = {  # name in a map -> column of an event
    "user": "user_id",
    "item": "item_id",
    "time": "timestamp",
    "type": "event_type",
    "event": "event_id",
    "value": "value",
    "currency": "currency",
    "quantity": "quantity",
    "order": "order_id",
    "device": "context.device",
    "session": "context.session_id",
    "page": "context.page",
    "position": "context.position",
    "slate": "context.slate_id",
    "country": "context.country",
}
_ITEM = {  # name in a map -> column of an item
    "item": "item_id",
    "title": "title",
    "category": "categories",
    "tags": "tags",
    "price": "price",
    "available": "available",
    "min_age": "min_age",
    "published": "published_at",
    "expires": "expires_at",
}
_REQUIRED = ("user", "item", "time", "type")


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """What each name is taken from: a column, or a text that is the same for all rows."""

    columns: Mapping[str, str]
    literals: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> "ColumnMap":
        """Of `name=column,name==text,...`. Raises DataError naming the part that is wrong."""
        columns: dict[str, str] = {}
        literals: dict[str, str] = {}
        known = list(dict.fromkeys([*_EVENT, *_ITEM]))
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, equals, source = part.partition("=")
            name, source = name.strip(), source.strip()
            if not equals or not source.removeprefix("="):
                raise DataError(
                    f"map: {part!r} is not name=column or name==text; write e.g. user=customer_id"
                )
            if name not in known:
                raise DataError(f"map: unknown name {name!r}; known: {', '.join(known)}")
            if name in columns or name in literals:
                raise DataError(f"map: {name!r} stands twice; keep one")
            if source.startswith("="):
                literals[name] = source[1:].strip()
            else:
                columns[name] = source
        return cls(columns, literals)

    def __contains__(self, name: object) -> bool:
        return name in self.columns or name in self.literals


def read_mapped(path: str | Path, *, column_map: ColumnMap | str) -> Dataset:
    """Events and items of one's own file. Raises DataError naming a column that is absent or unreadable."""
    column_map = ColumnMap.parse(column_map) if isinstance(column_map, str) else column_map
    if missing := [name for name in _REQUIRED if name not in column_map]:
        raise DataError(f"map lacks {', '.join(missing)}: add e.g. {missing[0]}={_example(missing[0])}")
    table = read_table(path)
    taken = _take(table, column_map, _EVENT, path)
    events = fill_event_ids(conform(pa.table(taken), where=str(path)))
    return Dataset(events=events, items=_items(table, column_map, path))


def read_items(path: str | Path, *, column_map: ColumnMap | str) -> pa.Table:
    """Items (ITEM_SCHEMA) of a catalog file without events. Raises DataError as `read_mapped`."""
    column_map = ColumnMap.parse(column_map) if isinstance(column_map, str) else column_map
    if "item" not in column_map.columns:
        raise DataError("map lacks item: add item=COLUMN, the column of the item ids")
    return _items(read_table(path), column_map, path)


def _example(name: str) -> str:
    return "=purchase" if name == "type" else f"COLUMN (the column that holds the {name})"


def _take(table: pa.Table, column_map: ColumnMap, targets: Mapping[str, str], path: str | Path) -> dict:
    """The mapped columns under our names, each already of a type that the schema accepts."""
    taken = {}
    for name, target in targets.items():
        if name in column_map.literals:
            column = pa.chunked_array([pa.repeat(column_map.literals[name], len(table))])
        elif name in column_map.columns:
            source = column_map.columns[name]
            if source not in table.column_names:
                raise DataError(
                    f"{path} has no column {source!r} (map: {name}={source}); "
                    f"it has {', '.join(table.column_names)}"
                )
            column = table[source]
        else:
            continue
        where = f"{path}, column {column_map.columns.get(name, name)!r} (map: {name})"
        try:
            taken[target] = _typed(column, target, where)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"{where}: {error}; correct that value or map another column") from error
    return taken


def _typed(column: pa.ChunkedArray, target: str, where: str) -> pa.ChunkedArray:
    if target in ("timestamp", "published_at", "expires_at"):
        return parse_times(column, where=where)
    if target in ("value", "price"):
        return column.cast(pa.float64())
    if target in ("quantity", "context.position", "min_age"):
        return column.cast(pa.float64()).cast(pa.int32())
    if target == "available":
        return column.cast(pa.bool_())
    if target in ("categories", "tags"):
        return column if pa.types.is_list(column.type) else pc.split_pattern(column.cast(pa.string()), "|")
    return ids_from(column)


def _items(table: pa.Table, column_map: ColumnMap, path: str | Path) -> pa.Table:
    """One item for each id: each column the last value given, `published` else the first event's time."""
    taken = _take(table, column_map, _ITEM, path)
    if "published_at" not in taken and "time" in column_map and "user" in column_map:
        taken |= {"published_at": _take(table, column_map, {"time": "timestamp"}, path)["timestamp"]}
        first = pl.col("published_at").min()
    else:
        first = pl.col("published_at").drop_nulls().last()
    frame = pl.DataFrame(pa.table(taken)).filter(pl.col("item_id").str.strip_chars() != "")
    last = [
        first if c == "published_at" else pl.col(c).drop_nulls().last()
        for c in frame.columns
        if c != "item_id"
    ]
    items = frame.group_by("item_id", maintain_order=True).agg(last)
    return conform_items(items.to_arrow().select([c for c in ITEM_SCHEMA.names if c in items.columns]))
