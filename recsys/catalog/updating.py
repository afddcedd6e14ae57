"""The catalog and its changelog, brought together: what it says is folded in, what is new is written to it.

The first rows of a catalog are given where it is built; all later ones by the changelog, since a service that
runs gives rows too.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from recsys.catalog.changelog import Change, Log
from recsys.catalog.following import Follower, Tail
from recsys.catalog.items import Catalog
from recsys.catalog.schema import conform_items
from recsys.catalog.writing import CatalogWriter


def caught_up(catalog: Catalog, log: Log) -> Catalog:
    """`catalog` with all that its changelog holds by now. Raises UnavailableError, DataError."""
    changes: list[Change] = []
    follower = Follower(
        log, start=catalog.position, apply=lambda held: changes.extend(change for _, change in held)
    )
    follower.catch_up()
    return catalog.fold(changes, follower.position) if changes else catalog.at(follower.position)


def with_items(catalog: Catalog, items: pa.Table, log: Log) -> Catalog:
    """`catalog` with `items` (an id stands in them once), by way of its changelog: everybody who follows has
    them, too. What they don't say of a known item stays as it is, be it that it was deleted; what is in the
    catalog already is not written again. Raises as `caught_up`."""
    catalog = caught_up(catalog, log)
    rows = {item_id: row for row, item_id in enumerate(catalog.ids)}

    def note(held: Sequence[tuple[int, Change]]) -> None:
        rows.update((change.item_id, change.row) for _, change in held)

    follower = Follower(log, start=catalog.position, apply=note)
    if changed := list(_changed(catalog, Catalog(conform_items(items)).items)):
        with Tail(follower):
            CatalogWriter(log, follower=follower, row_of=rows.get).upsert(changed)
    return caught_up(catalog, log)


def _changed(catalog: Catalog, items: pa.Table) -> Iterator[Mapping[str, Any]]:
    """Records of those that are new, or say something else than the catalog, but for when they were
    published."""
    rows = catalog.rows_of(items["item_id"])
    known = iter(catalog.items.take(pa.array(rows[rows >= 0])).to_pylist())
    for row, record in zip(rows, items.to_pylist()):
        before = next(known) if row >= 0 else {}
        said = {name: value for name, value in record.items() if value is not None}
        if any(before.get(name) != value for name, value in said.items() if name != "published_at"):
            told = {**before, **said}
            yield {**told, "attributes": dict(told.get("attributes") or {}) or None}
