"""Reads a data set and ingests it: events to the event store, items to the catalog.

python -m jobs.ingest --dataset online-retail
python -m jobs.ingest --path events.csv --map user=uid,item=sku,time=ts,type==purchase
"""

import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.session import run_job
from jobs.workspace import Progress, Workspace, silent
from recsys.catalog import Catalog
from recsys.datasets.mapped import read_items, read_mapped
from recsys.datasets.sources import read_dataset
from recsys.errors import DataError
from recsys.events.validation import validate
from recsys.settings import Settings


def read(
    settings: Settings,
    *,
    dataset: str | None = None,
    path: str | None = None,
    map: str | None = None,
    items: str | None = None,
    item_map: str | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Data of any source in the contracts of events and items, as Parquet in `data/`."""
    folder = Workspace(settings).folder / "data"
    folder.mkdir(parents=True, exist_ok=True)
    progress(0.0, "reading")
    events, found = pa.table({}), None
    if map:
        if not path:
            raise DataError("columns are mapped but no file is named: add --path FILE")
        events, found = _tables(read_mapped(path, column_map=map))
        # Rows of the catalog are for ever: an item that only rejected events name gets none.
        valid, _ = validate(events, now=int(time.time()), settings=settings.events)
        found = found.filter(
            pa.compute.is_in(found["item_id"], value_set=pa.compute.unique(valid["item_id"]))
        )
    elif dataset or path:
        events, found = _tables(read_dataset(dataset or "online-retail", path))
    if items:
        found = read_items(items, column_map=item_map or "item=item_id,title=title")
    if found is None:
        raise DataError("nothing to read: name a --dataset, or a --path with its columns")
    pq.write_table(found, folder / "items.parquet", compression="zstd")
    if len(events):
        pq.write_table(events, folder / "events.parquet", compression="zstd")
    else:
        (folder / "events.parquet").unlink(missing_ok=True)
    figures: dict[str, Any] = {"events": len(events), "items": len(found)}
    if len(events):
        days = pa.compute.min_max(events["timestamp"]).as_py()
        figures |= {"from": _day(days["min"]), "to": _day(days["max"])}
    return figures


def ingest(settings: Settings, *, progress: Progress = silent) -> dict[str, Any]:
    """What `read` left in `data/`: validated, without duplicates, in the event store and the catalog."""
    from recsys.events.ingestion import ingest_events

    workspace = Workspace(settings)
    data = workspace.folder / "data"
    catalog_path = workspace.folder / "catalog.parquet"
    try:
        items = pq.read_table(data / "items.parquet")
    except OSError as error:
        raise DataError(f"nothing to ingest in {data}: read a data set first") from error
    catalog = Catalog.load(catalog_path).upsert(items) if catalog_path.exists() else Catalog.build(items)
    catalog.save(catalog_path)
    figures: dict[str, Any] = {"items": len(catalog)}
    if (data / "events.parquet").exists():
        events = pq.read_table(data / "events.parquet")
        counts = ingest_events(
            events,
            store=workspace.store,
            workdir=data,
            now=int(time.time()),
            settings=settings.events,
            progress=lambda done: progress(done / max(len(events), 1), f"{done:,} events validated"),
        )
        figures |= {
            "read": counts.read,
            "stored": counts.stored,
            "duplicate": counts.duplicate,
            "rejected": counts.rejected,
        }
    return figures


def run(settings: Settings, *, progress: Progress = silent, **source: str) -> dict[str, Any]:
    read(settings, progress=progress, **source)
    return ingest(settings, progress=progress)


def _tables(dataset: Any) -> tuple[pa.Table, pa.Table]:
    return dataset.events, dataset.items


def _day(moment: Any) -> str:
    return moment.date().isoformat() if moment else ""


if __name__ == "__main__":
    run_job(
        run,
        description=__doc__,
        dataset="online-retail, movielens-100k or movielens-latest-small",
        path="a file or folder of the data set, or of your own events",
        map="columns of your own file: user=...,item=...,time=...,type=...",
        items="a catalog file",
        item_map="its columns: item=...,title=...,category=...,price=...",
    )
