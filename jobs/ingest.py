"""Reads a data set and ingests it: events to the event store, items to the catalog.

python -m jobs.ingest --dataset online-retail
python -m jobs.ingest --path events.csv --map user=uid,item=sku,time=ts,type==purchase
python -m jobs.ingest --bus                    what the bus holds and the store does not
python -m jobs.ingest --bus --from 2026-11-01 --to 2026-11-02T12:00 --into s3://bucket/replay
python -m jobs.ingest --follow                 and what it gets from now on, until it is stopped
"""

import signal
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.session import bus_session, run_job
from jobs.workspace import Progress, Workspace, open_store, silent, store_arguments
from recsys.catalog.changelog import Position
from recsys.catalog.items import Catalog
from recsys.catalog.updating import caught_up, with_items
from recsys.datasets.mapped import read_items, read_mapped
from recsys.datasets.sources import read_dataset
from recsys.errors import DataError, UnavailableError
from recsys.events.audit import audit
from recsys.events.bus import Bus, BusSettings, open_bus
from recsys.events.committer import READER
from recsys.events.times import microseconds
from recsys.events.validation import validate
from recsys.settings import Settings

if TYPE_CHECKING:
    from recsys.events.following import Status

AUDIT_S = 60.0  # between two audits of `--follow`, whose figures are metrics


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
    from recsys.events.files import ingest_events

    workspace = Workspace(settings)
    data = workspace.folder / "data"
    try:
        items = pq.read_table(data / "items.parquet")
    except OSError as error:
        raise DataError(f"nothing to ingest in {data}: read a data set first") from error
    if not workspace.catalog_path.exists():
        catalog = Catalog.build(items)
        catalog.save(workspace.catalog_path)
    else:
        with bus_session(settings) as bus:
            catalog = update_catalog(workspace, bus, items=items)
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


def update_catalog(
    workspace: Workspace, bus: BusSettings, *, items: pa.Table | None = None, new_changelog: bool = False
) -> Catalog:
    """The catalog with what its changelog holds, and with `items`. `new_changelog`: the old one is lost, so
    the catalog as it is begins another."""
    catalog = Catalog.load(workspace.catalog_path)
    if new_changelog:
        catalog = catalog.at(replace(Position.first(catalog.ids), log=uuid.uuid4().hex[:12]))
    with closing(open_bus(bus.of_changelog(catalog.position.log))) as log:
        catalog = caught_up(catalog, log) if items is None else with_items(catalog, items, log)
    catalog.save(workspace.catalog_path)
    return catalog


def ingest_range(
    settings: Settings,
    *,
    begin: str | None = None,
    end: str | None = None,
    into: str | None = None,
    accept_loss: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """A range of the bus, into the event store or into another one (`into`): catch-up, replay, backfill.

    `begin`, `end`: an ISO time (of the bus taking the event), or offsets: 0=1200,1=900.
    """
    from recsys.events.ingestion import ingest_bus

    store = open_store(settings, **({"uri": into, "cold_uri": None} if into else {}))
    with bus_session(settings) as bus_settings, closing(open_bus(bus_settings)) as bus:
        if not into:
            _fold_changelog(settings, bus_settings)  # first: the events are of items that are in it
        counts = ingest_bus(
            bus,
            bus_settings=bus_settings,
            store=store,
            settings=settings.ingestion,
            validation=settings.events,
            begin=offsets_of(begin, bus) if begin else None,
            end=offsets_of(end, bus) if end else None,
            accept_loss=accept_loss,
            reader=None if into else READER,
            progress=lambda done, total: progress(done / max(total, 1), f"{done:,} of {total:,} events"),
        )
    return asdict(counts) | {"store": store.uri}


def follow_bus(
    settings: Settings, *, stop: Callable[[], bool], report: Callable[["Status"], None] | None = None
) -> dict[str, Any]:
    """Ingests what the bus gets until `stop()`; shows its metrics where `ingestion.metrics_port` says."""
    from recsys.events.following import Following, follow
    from recsys.monitoring.ingestion import IngestionMetrics

    metrics = IngestionMetrics()
    if settings.ingestion.metrics_port is not None:
        metrics.serve(settings.ingestion.metrics_port)

    with bus_session(settings) as bus_settings, closing(open_bus(bus_settings)) as bus:
        _fold_changelog(settings, bus_settings)
        audited = 0.0

        def tell(status: "Status") -> None:
            nonlocal audited
            metrics.record_status(status)
            if settings.ingestion.metrics_port is not None and time.monotonic() - audited > AUDIT_S:
                with suppress(UnavailableError):
                    metrics.record_audit(audit(open_store(settings), bus))
                audited = time.monotonic()
            if report:
                report(status)

        following = Following(bus_settings, settings.events, settings.ingestion, store_arguments(settings))
        status = follow(following, stop=stop, report=tell)
    return asdict(status.counts) | {"commits": status.commits}


def _fold_changelog(settings: Settings, bus: BusSettings) -> None:
    workspace = Workspace(settings)
    if workspace.catalog_path.exists():
        update_catalog(workspace, bus)


def offsets_of(text: str, bus: Bus) -> dict[int, int]:
    """`0=1200,1=900`, or the offsets of an ISO time, of each partition. Raises DataError."""
    if (moment := microseconds(text)) is not None:
        return bus.offsets_at(moment // 1000)
    try:
        offsets = {int(p): int(offset) for p, _, offset in (part.partition("=") for part in text.split(","))}
    except ValueError as error:
        raise DataError(
            f"{text!r} is neither a time like 2026-11-24T08:00 nor offsets like 0=1200,1=900"
        ) from error
    if unknown := [p for p in offsets if not 0 <= p < bus.partitions]:
        raise DataError(f"{text!r}: {bus.topic} has no partition {unknown[0]}, but 0 to {bus.partitions - 1}")
    return offsets


def run(settings: Settings, *, progress: Progress = silent, **given: Any) -> dict[str, Any]:
    follow, bus = given.pop("follow", False), given.pop("bus", False)
    if given.pop("new_changelog", False):
        with bus_session(settings) as bus_settings:
            catalog = update_catalog(Workspace(settings), bus_settings, new_changelog=True)
        return {"items": len(catalog), "changelog": catalog.position.log}
    _check(given, follow=follow, bus=bus)
    if follow:
        return follow_bus(settings, stop=until_signal())
    if bus:
        begin, end = given.pop("from", None), given.pop("to", None)
        return ingest_range(settings, begin=begin, end=end, progress=progress, **given)
    read(settings, progress=progress, **given)
    return ingest(settings, progress=progress)


def _check(given: Mapping[str, Any], *, follow: bool, bus: bool) -> None:
    """Raises DataError for options that don't go together."""
    if follow and (bus or given):
        raise DataError(
            "--follow goes on where the store ends and takes no other option: give --bus for a range"
        )
    of_bus = {"from", "to", "into", "accept_loss"}
    wrong = sorted(given.keys() - of_bus if bus else given.keys() & of_bus)
    if wrong:
        option = wrong[0].replace("_", "-")
        raise DataError(f"--{option} is {'of files and data sets, not of' if bus else 'an option of'} --bus")


def until_signal() -> Callable[[], bool]:
    """Whether Ctrl-C or a TERM signal came; the second Ctrl-C interrupts at once."""
    came = threading.Event()

    def note(number: int, frame: Any) -> None:
        came.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    return came.is_set


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
        **{
            "from": "with --bus: where a store that is empty begins, a time or offsets (0=1200,1=900)",
            "to": "with --bus: where to end, a time or offsets",
            "into": "with --bus: another store than the settings name",
        },
        switches={
            "bus": "ingest what the bus holds and the store does not",
            "follow": "ingest what the bus gets, until Ctrl-C or TERM",
            "accept_loss": "with --bus: record events that left the bus before they were ingested as lost",
            "new_changelog": "the catalog's changelog is lost: begin another one, and do nothing else",
        },
    )
