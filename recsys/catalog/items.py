"""Items and their rows: an item's row is given once and never changes, whatever is upserted later.

At the first build rows follow `published_at` (null, meaning "always there", first), then item id, so
that the items known before a moment are the leading rows. Later items are appended; a known item takes
every column of its new record except `published_at`, since V(t) must not change. It holds no events
and does not decide what may be shown.
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.catalog.changelog import Change, Position
from recsys.catalog.schema import ITEM_SCHEMA, conform_items, items_of_changes
from recsys.errors import DataError

_LATEST = np.iinfo(np.int64).max
_BEGINNING = Position(0, 0)  # of the log that goes on from the rows of the catalog
_POSITION = b"recsys.position"  # in the metadata of a catalog's file


@dataclass(frozen=True, slots=True)
class Catalog:
    """V items; row r of `items` is item row r. Made by `build`, `upsert` or `load`."""

    items: pa.Table  # ITEM_SCHEMA
    position: Position = _BEGINNING  # in the changelog: all before it is in here
    _rows: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows = {item: row for row, item in enumerate(self.items["item_id"].to_pylist())}
        object.__setattr__(self, "_rows", rows)
        if None in rows or "" in rows:
            raise DataError("an item without item_id can't have a row; remove it or give it an id")
        if len(rows) != len(self.items):
            raise DataError(
                f"{len(self.items) - len(rows)} item ids stand twice in a catalog; keep one record of each"
            )
        if not self.position.log:
            object.__setattr__(self, "position", Position.first(rows))

    def __len__(self) -> int:
        return len(self.items)

    @classmethod
    def build(cls, items: pa.Table) -> "Catalog":
        """The first rows of `items` (ITEM_SCHEMA, or a part of its columns with item_id)."""
        items = conform_items(items)
        published = _epoch_seconds(items["published_at"], absent=np.iinfo(np.int64).min)
        ids = np.asarray(items["item_id"].to_pylist(), dtype=object).astype(str)
        return cls(items.take(pa.array(np.lexsort((ids, published)))).combine_chunks())

    def upsert(self, items: pa.Table) -> "Catalog":
        """This catalog with `items` replaced or appended, in their order. An id may stand in them once."""
        new = Catalog(conform_items(items))
        rows = self.rows_of(new.ids)
        known = pa.array(rows >= 0)
        changed = new.items.filter(known)
        place = np.arange(len(self))
        place[rows[rows >= 0]] = len(self) + np.arange(len(changed))
        merged = pa.concat_tables([self.items, changed]).take(pa.array(place))
        index = ITEM_SCHEMA.get_field_index("published_at")
        merged = merged.set_column(index, ITEM_SCHEMA.field(index), self.items["published_at"])
        merged = pa.concat_tables([merged, new.items.filter(pc.invert(known))]).combine_chunks()
        return Catalog(merged, self.position)

    def fold(self, changes: Sequence[Change], position: Position) -> "Catalog":
        """This catalog after `changes` that hold and are readable, which end at `position`. A deleted item
        keeps its row, and is not available. Raises DataError if they are of another catalog."""
        rows, own = dict(self._rows), list[Change]()
        for change in changes:
            if change.row == len(rows) and change.item_id not in rows:
                rows[change.item_id] = change.row
            if rows.get(change.item_id) == change.row:
                own.append(change)
            else:
                logging.getLogger(__name__).warning(
                    "the changelog changes item %s in row %d, which it has not; this is passed over",
                    change.item_id,
                    change.row,
                )
        if len(rows) != position.rows:
            raise DataError(f"the changelog {position.log!r} goes on from another catalog than this one")
        upserts = [change for change in own if change.kind == "upsert"]
        last, published = dict[str, int](), dict[str, Any]()
        for place, change in enumerate(upserts):  # in the order of the rows
            last[change.item_id] = place
            published.setdefault(change.item_id, (change.item or {}).get("published_at"))  # it is said once
        final = [upserts[place] for place in last.values()]
        items = [
            replace(change, item={**(change.item or {}), "published_at": published[change.item_id]})
            for change in final
        ]
        folded = self.upsert(items_of_changes(items))
        kinds = {change.row: change.kind for change in own}
        gone = np.zeros(len(folded), bool)
        gone[[row for row, kind in kinds.items() if kind == "delete"]] = True
        index = ITEM_SCHEMA.get_field_index("available")
        shown = pc.if_else(pa.array(gone), False, folded.items["available"].combine_chunks())
        return Catalog(folded.items.set_column(index, ITEM_SCHEMA.field(index), shown), position)

    def at(self, position: Position) -> "Catalog":
        """This catalog, with nothing to fold in before `position`."""
        return replace(self, position=position)

    def save(self, path: str | Path) -> None:
        """Writes Parquet atomically: a reader sees the old file or the new one."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        position = json.dumps(asdict(self.position)).encode()
        pq.write_table(self.items.replace_schema_metadata({_POSITION: position}), draft, compression="zstd")
        os.replace(draft, path)

    @classmethod
    def load(cls, path: str | Path) -> "Catalog":
        """Raises DataError if there is no catalog at `path`."""
        try:
            table = pq.read_table(path)
        except FileNotFoundError as error:
            raise DataError(f"no catalog at {path}: run `recsys ingest` first") from error
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path} is no catalog ({error}); build it again with `recsys ingest`") from error
        position = json.loads((table.schema.metadata or {}).get(_POSITION, b'{"offset": 0, "rows": 0}'))
        return cls(conform_items(table), Position(**position))

    def rows_of(self, ids: Sequence[str | None] | np.ndarray | pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Row of each item id, int32 [N]; -1 = unknown."""
        if isinstance(ids, pa.Array | pa.ChunkedArray):
            found = pc.index_in(ids, value_set=self.items["item_id"].combine_chunks())
            return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int32)
        return np.fromiter((self._rows.get(i or "", -1) for i in ids), np.int32, len(ids))

    def size_at(self, time: int) -> int:
        """V(t): how many leading rows were published before `time` (epoch seconds)."""
        later = _epoch_seconds(self.items["published_at"], absent=np.iinfo(np.int64).min) >= time
        return int(np.argmax(later)) if later.any() else len(self)

    @property
    def ids(self) -> np.ndarray:
        """str objects [V]."""
        return np.array(self.items["item_id"].to_pylist(), dtype=object)

    @property
    def titles(self) -> list[str]:
        """[V]; "" = none."""
        return pc.fill_null(self.items["title"], "").to_pylist()

    @property
    def primary_categories(self) -> list[str]:
        """[V] the first category; "" = none."""
        categories = self.items["categories"].combine_chunks()
        lengths = pc.fill_null(pc.list_value_length(categories), 0)
        some = pc.if_else(pc.greater(lengths, 0), categories, pa.scalar([""], categories.type))
        return pc.fill_null(pc.list_element(some, 0), "").to_pylist()

    @property
    def price(self) -> np.ndarray:
        """float64 [V]; NaN = none."""
        return pc.fill_null(self.items["price"], np.nan).to_numpy()

    @property
    def available(self) -> np.ndarray:
        """bool [V]; not said means available."""
        return pc.fill_null(self.items["available"], True).to_numpy().astype(bool)

    @property
    def min_age(self) -> np.ndarray:
        """int32 [V]; 0 = none."""
        return pc.fill_null(self.items["min_age"], 0).to_numpy().astype(np.int32)

    @property
    def published_at(self) -> np.ndarray:
        """Epoch seconds, int64 [V]; the smallest int64 = always there."""
        return _epoch_seconds(self.items["published_at"], absent=np.iinfo(np.int64).min)

    @property
    def expires_at(self) -> np.ndarray:
        """Epoch seconds, int64 [V]; the largest int64 = never."""
        return _epoch_seconds(self.items["expires_at"], absent=_LATEST)

    def with_categories(self, categories: Sequence[Sequence[str]]) -> "Catalog":
        """This catalog with other categories [V], for data that has none of its own."""
        index = ITEM_SCHEMA.get_field_index("categories")
        column = pa.array([list(c) for c in categories], ITEM_SCHEMA.field(index).type)
        return replace(self, items=self.items.set_column(index, ITEM_SCHEMA.field(index), column))


def _epoch_seconds(column: pa.ChunkedArray, *, absent: int) -> np.ndarray:
    """Whole seconds, rounded down as the times of events are. int64 [V]."""
    micros = column.cast(pa.int64())
    seconds = pc.fill_null(micros, 0).to_numpy() // 1_000_000
    return np.where(micros.is_null().to_numpy(), absent, seconds)
