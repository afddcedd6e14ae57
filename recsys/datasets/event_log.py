"""Our own event log as interactions: a work directory, a Delta table of events, or a file of events.

Decides what counts as an interaction and how much it says: purchases most, views least; skips and
impressions are none. Only a rating's `value` is kept: that of other events is money. A file is judged
as ingestion judges it: rejected events and those that stand twice are left out; but a line that can't
be read is an error. Items are those of the work directory's catalog, with their content; elsewhere
those that the events name, without any.
"""

import logging
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.catalog.items import Catalog
from recsys.datasets.content import Part, list_part, number_part, title_part, tokens_of
from recsys.datasets.lines import read_text
from recsys.datasets.tables import FORMATS, read_table
from recsys.errors import DataError
from recsys.events.delta import StoreTable
from recsys.events.duplicates import identities
from recsys.events.interactions import interactions_of
from recsys.events.schema import EVENT_SCHEMA, STORED_SCHEMA, conform
from recsys.events.store import EventStore
from recsys.events.validation import fill_event_ids, validate
from recsys.events.wire import Decoder
from recsys.interactions import Interactions, Tokens

WEIGHTS = {"purchase": 5.0, "add_to_cart": 3.0, "click": 1.0, "rating": 1.0, "view": 0.3}
LINES = (".jsonl", ".ndjson", ".json")


def read_event_log(path: str | Path, *, min_rating: float | None = None) -> Interactions:
    """The whole log; ratings below `min_rating` are left out. Raises DataError."""
    path = Path(path)
    events = _events(path)
    kind = events["event_type"]
    counts = pc.is_in(kind, value_set=pa.array(list(WEIGHTS)))
    if min_rating is not None:
        rating = pc.equal(kind, "rating")
        if not pc.any(rating).as_py():
            raise DataError(f"{path} has no event of type rating; omit --min-rating")
        low = pc.invert(pc.fill_null(pc.greater_equal(events["value"], min_rating), False))
        counts = pc.and_not(counts, pc.and_(rating, low))
    taken = events.filter(counts)
    if not len(taken):
        found = Counter(kind.to_pylist())
        raise DataError(
            f"{path} has no interaction: of {len(events)} events "
            f"({', '.join(f'{n} {name}' for name, n in found.most_common()) or 'none'}) none is a "
            f"{', '.join(WEIGHTS)}{'' if min_rating is None else f' (rated {min_rating:g} or better)'}"
        )
    catalog = _catalog(path, taken)
    kinds = taken["event_type"].combine_chunks().dictionary_encode()
    weights = np.array([WEIGHTS[name] for name in kinds.dictionary.to_pylist()], np.float32)
    weight = weights[kinds.indices.to_numpy()] if len(np.unique(weights)) > 1 else None
    rows = catalog.rows_of(taken["item_id"])
    if not (rows >= 0).any():
        raise DataError(f"{path}: no event is of an item of catalog.parquet; ingest both from one source")
    rated = pc.if_else(pc.equal(taken["event_type"], "rating"), taken["value"], None)
    taken = taken.set_column(taken.schema.get_field_index("value"), "value", rated)
    log = interactions_of(taken, rows=rows, items=len(catalog), weight=weight)
    return replace(log, item_tokens=catalog_tokens(catalog))


def catalog_tokens(catalog: Catalog) -> Tokens | None:
    """Tokens of each item: words and word pairs of its title, categories, tags, the tenth of the catalog
    that its price is in, attributes. None if no item has any."""
    row = np.arange(len(catalog))
    attributes = catalog.items["attributes"].combine_chunks()
    parts: list[Part] = [
        title_part(row, catalog.titles),
        list_part(row, catalog.items["categories"], column="category"),
        list_part(row, catalog.items["tags"], column="tag"),
        number_part(row, catalog.price, column="price"),
    ]
    if attributes.null_count < len(attributes):
        named = [(r, *pair) for r, found in enumerate(attributes.to_pylist()) for pair in found or ()]
        owner = np.array([r for r, _, text in named if text], np.int64)
        parts.append((owner, pa.array([f"{name}={text}" for _, name, text in named if text], pa.string())))
    return tokens_of(parts, things=len(catalog))


def store_of(path: Path) -> EventStore | None:
    """The event store of a work directory, or the one at `path`; None if there is none."""
    for folder in (path / "events", path):
        if (folder / "events" / "_delta_log").is_dir():
            return EventStore(str(folder))
    return None


def _events(path: Path) -> pa.Table:
    """All valid events, EVENT_SCHEMA, in no particular order."""
    if not path.exists():
        raise DataError(f"nothing at {path}; give a work directory, a Delta table or a file of events")
    if path.is_file():
        return _of_file(path)
    if (store := store_of(path)) is not None:
        return store.read()
    if (path / "_delta_log").is_dir():
        table = StoreTable(str(path), schema=STORED_SCHEMA, options={}, period="timestamp")
        opened = table.open()
        if opened is not None:
            return table.read(opened, columns=EVENT_SCHEMA.names)
    raise DataError(
        f"{path} holds no events: expected a work directory of `recsys ingest` (events/, catalog.parquet), "
        f"a Delta table of events, or a file ({', '.join(FORMATS)})"
    )


def _of_file(path: Path) -> pa.Table:
    events = _of_lines(path) if path.suffix.lower() in LINES else conform(read_table(path), where=str(path))
    valid, rejected = validate(fill_event_ids(events), now=int(time.time()))
    reasons = Counter(rejected["reason"].to_pylist())
    if not len(valid):
        reason, count = reasons.most_common(1)[0]
        raise DataError(f"{path}: all {len(rejected)} events are rejected, {count} as {reason}; correct them")
    first = np.zeros(len(valid), bool)
    first[np.unique(identities(valid), return_index=True)[1]] = True
    reasons["duplicate"] = len(first) - int(first.sum())
    if left_out := ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common() if count):
        told = f"{path}: {len(events) - first.sum():,} of {len(events):,} events are left out: {left_out}"
        logging.getLogger(__name__).warning(told)
    return valid.filter(pa.array(first))


def _of_lines(path: Path) -> pa.Table:
    """A JSON object a line."""
    lines = read_text(path, expected="an event a line, as a JSON object").split("\n")
    numbers = [number for number, line in enumerate(lines, start=1) if line.strip()]
    events, broken = Decoder(strict=True)([lines[number - 1].encode() for number in numbers])
    for number, error in zip(numbers, broken, strict=True):
        if error is not None:
            raise DataError(f"{path}, line {number}: {error}; correct the line")
    return events


def _catalog(path: Path, events: pa.Table) -> Catalog:
    if (path / "catalog.parquet").is_file():
        return Catalog.load(path / "catalog.parquet")
    first = events.group_by("item_id").aggregate([("timestamp", "min")])
    return Catalog.build(first.rename_columns(["item_id", "published_at"]))
